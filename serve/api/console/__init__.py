"""The console at /ui: plain HTML, CSS and JavaScript, all served by this server."""

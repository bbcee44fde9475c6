"""The console at /ui: plain HTML, CSS and JavaScript of this server's own; nothing is loaded from elsewhere."""

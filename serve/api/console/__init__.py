"""The console at /ui, a page to classify images and to show or change β: plain HTML, CSS and JavaScript."""

"""The page to try a server in a browser: one HTML, one CSS and one JS file, and their routes."""

"""The protocol over HTTP: routes, bodies and connections within limits, and the page to try it."""

"""`prunion bench`: how fast a bundle answers here, beside whatever else one would run."""

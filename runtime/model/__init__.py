"""A loaded model: domains, pool of sessions, plan."""

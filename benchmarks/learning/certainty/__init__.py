"""How sure a difference between rows is: its interval, and whether both began alike."""

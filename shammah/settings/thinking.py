"""What ``inference.think`` may be. By itself, so that ``--help`` need not load the settings."""

THINK = ("off", "on", "show")

"""Which licences a model may have. By itself, so that ``--help`` need not load the settings."""

LICENCES = ("any", "permissive")

"""The heavy processes: each worker is one process with one role.

Started as ``python -P -m workers ROLE`` (``-P``: a stray ``workers/`` in the user's
directory must not run instead of this package).
"""

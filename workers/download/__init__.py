"""The download worker: from a model's name to a verified snapshot in the Hugging Face cache.

huggingface_hub reads these once, at its first import, which no module of this package can
make before this one has run.
"""

import os

# Its own transfer engine would bypass the fetcher here, and can neither resume nor verify.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

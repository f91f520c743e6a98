"""Every architecture and device, through transformers."""

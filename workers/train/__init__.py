"""The train worker: LoRA fine-tuning of the local model, at low priority.

The logic (`fine_tuning`, `trainer`, `gate`) knows no processes and no sockets; `service` is its
adapter to the host. Only what is named after torch's own business imports torch.
"""

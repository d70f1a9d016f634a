"""fedsim: train federated Vision Transformers, and audit what each client's update leaks."""

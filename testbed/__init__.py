"""The controller of a federated fine-tuning testbed."""

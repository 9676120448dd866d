"""TSFA: the structural rank offline, sparsification and bandwidth online under a mean latency limit."""

"""Kinds of task: how a table becomes tensors, which loss and metrics apply, how an answer reads.

One kind a file; `registry` lists them and stays light, so that a recipe is checked without pandas or torch.
"""

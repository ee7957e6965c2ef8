"""`proa abft profile`: what checking costs, layer by layer, and how well a model uses its device.

`plan` and `choice` need no torch: a packer and a worker read plans with them.
"""

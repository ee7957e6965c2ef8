"""Fault campaigns on checked matrix products (docs/abft-campaign.md).

`synthetic.run_synthetic` on matrices of known distributions, `model.run_model` in the layers of a
program. Nothing is exported here: `operators` puts the injection hook into this process.
"""

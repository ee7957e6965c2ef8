"""The frontend process: speaks the Open Inference Protocol, drives the redundancy engine."""

"""Twelve classic bugs of RLHF code, each switched on from outside and shown beside the healthy run."""

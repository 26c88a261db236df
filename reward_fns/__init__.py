"""Rewards of published methods: one reward per file, each with verl's signature:

    await compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)

They import neither verl nor Ray nor torch, so any trainer and a plain asyncio script can use them.
"""

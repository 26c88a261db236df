"""Rewards of published methods, one a file, each with verl's signature:

    await compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)

They import neither verl nor ray nor torch, so any trainer and a plain asyncio script can use them.
"""

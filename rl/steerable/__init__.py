"""A controlled task whose right gates are known: does RL find them?"""

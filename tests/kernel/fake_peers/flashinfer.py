"""Stands in for FlashInfer (see torch/): it checks that a plan's pages are those of its lists."""

import types

import torch


class BatchDecodeWithPagedKVCacheWrapper:
    def __init__(self, workspace, layout, use_tensor_cores):
        assert layout == "HND" and use_tensor_cores

    def plan(self, starts, indices, last, q_heads, kv_heads, head_dim, page, q_data_type, kv_data_type):
        assert starts.shape[0] == last.shape[0] + 1 and indices.shape[0] % last.shape[0] == 0
        self.q, self.pool = (last.shape[0], q_heads, head_dim), (indices.shape[0], 2, kv_heads, page, head_dim)

    def run(self, q, pool):
        assert (q.shape, pool.shape) == (self.q, self.pool), f"{q.shape}, {pool.shape}"
        return q


sampling = types.SimpleNamespace(top_k_top_p_sampling_from_logits=lambda logits, k, p: torch.Tensor(logits.shape[0]))

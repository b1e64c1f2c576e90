"""The processes that share the tests."""

import os

import torch


def test_a_process_that_shares_the_tests_computes_with_one_thread() -> None:
    """With a thread for each core they wait for each other: a forward pass takes ten times as much of the processor."""
    assert "PYTEST_XDIST_WORKER" not in os.environ or torch.get_num_threads() == 1

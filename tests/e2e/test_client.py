"""The Python client against a real server: what its errors carry, and what becomes of what runs when it is closed."""

import copy
import pickle

import grpc
import pytest

from quire_client import QuireError


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_is_the_same_on_the_other_side_of_a_process(client, copied):
    """multiprocessing pickles it: one that cannot be read back breaks the pool."""
    with pytest.raises(QuireError) as raised:
        client.generate("x", top_p=2).result()
    raised.value.add_note("request 7")
    made = QuireError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_s=1.5, quotas={"max_tenant_requests_per_minute": 6})
    for error in (raised.value, made):
        got = copied(error)
        assert type(got) is QuireError and str(got) == str(error)
        assert vars(got) == vars(error)

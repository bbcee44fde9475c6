from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tureen.engines.buckets import bucket_sizes, split_batch

MAX_BATCH = st.integers(1, 1024)


@given(MAX_BATCH)
def test_sizes_ascend_from_one_to_the_largest_and_none_is_more_than_twice_the_one_before(max_batch):
    sizes = bucket_sizes(max_batch)
    assert (sizes[0], sizes[-1]) == (1, max_batch)
    assert all(a < b <= 2 * a for a, b in pairwise(sizes))


def test_sizes_are_powers_of_two_and_the_largest():
    assert bucket_sizes(128) == (1, 2, 4, 8, 16, 32, 64, 128)
    assert bucket_sizes(100) == (1, 2, 4, 8, 16, 32, 64, 100)


@given(rows=st.integers(0, 5000), max_batch=MAX_BATCH)
def test_a_batch_is_cut_into_parts_that_cover_it_in_order_and_each_fits_its_size(rows, max_batch):
    sizes = bucket_sizes(max_batch)
    parts = list(split_batch(rows, sizes))
    assert [row for part, _ in parts for row in range(part.start, part.stop)] == list(range(rows))
    assert len(parts) == -(-rows // max_batch)
    for part, size in parts:
        held = part.stop - part.start
        assert size in sizes
        assert held <= size < max(2, 2 * held)  # less than half of it is padding

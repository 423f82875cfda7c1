"""Random networks, quantized by the pipeline, bit for bit as onnxruntime runs them."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.cpus import needs_vnni
from tests.networks import Net
from tests.odd_graphs import Odd
from tests.random_networks import check, quantized
from tests.strategies import networks, odd_graphs

# Networks are big examples by nature; the rest of the profile stays as it is.
LARGE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@needs_vnni
@settings(max_examples=50, suppress_health_check=LARGE)
@given(networks)
def test_random_networks_run_as_in_onnxruntime(net: Net):
    check(quantized(net))


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=LARGE)
@given(networks)
def test_many_random_networks_run_as_in_onnxruntime(net: Net):
    check(quantized(net))


@needs_vnni
@settings(max_examples=120, suppress_health_check=LARGE)
@given(odd_graphs)
def test_graphs_of_others_with_odd_parameters_run_as_in_onnxruntime(odd: Odd):
    check(odd.model())

"""The private parts of torch that training uses still exist: if a new version of torch changes them, this says which."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer, RMSprop


@pytest.mark.parametrize(
    ("name", "used_by"),
    [
        ("_fused_adam_", "training/fused_adam.py: torch.optim.Adam(fused=True) takes the same step, more slowly"),
        ("_fused_adamw_", "training/fused_adam.py: torch.optim.AdamW(fused=True) takes the same step, more slowly"),
        ("_foreach_add_", "training/fused_adam.py and training/optimizers.py: call add_ on each tensor"),
        ("_foreach_sign", "training/optimizers.py: call sign on each tensor"),
        ("_foreach_lerp_", "training/averaging.py: call lerp_ on each tensor"),
        ("_foreach_copy_", "training/averaging.py: call copy_ on each tensor"),
    ],
)
def test_functions_on_lists_of_tensors_exist(name: str, used_by: str) -> None:
    assert hasattr(torch, name), f"torch {torch.__version__} has no torch.{name}, which is used by {used_by}"


def test_fused_kernels_take_the_arguments_that_fused_adam_passes() -> None:
    weight, gradient, first, second = (torch.ones(2) for _ in range(4))
    for name in ("_fused_adam_", "_fused_adamw_"):
        options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
        try:
            getattr(torch, name)(
                [weight], [gradient], [first], [second], [], [torch.ones(())], **options, amsgrad=False, maximize=False
            )
        except (TypeError, RuntimeError) as error:
            pytest.fail(f"the arguments of torch.{name} changed, see headrace/training/fused_adam.py: {error}")


def test_optimizers_skip_the_profiler_for_steps_marked_as_hooked() -> None:
    source = inspect.getsource(Optimizer._patch_step_function)
    assert '"hooked"' in source, "Optimizer wraps FusedAdam.step now, which makes small models train more slowly"


def test_optimizers_import_the_tracer_only_where_we_keep_them_from_it() -> None:
    where = "see headrace/training/optimizers.py: without it each training starts a second later"
    assert "__dynamo_disable" in inspect.getsource(torch._compile), where
    for method in (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict):
        assert inspect.unwrap(method) is not method, where
    for kind in (SGD, Adam, AdamW, Muon, RMSprop):
        source = inspect.getsource(inspect.unwrap(kind.step))
        assert source.lstrip().startswith(("@_use_grad", "@torch.no_grad", "def step(")) and "_dynamo" not in source, where


def test_the_agent_has_what_our_agent_overrides() -> None:
    where = "headrace/training/launch.py decides there whether a restart helps"
    assert hasattr(LocalElasticAgent, "_monitor_workers"), f"LocalElasticAgent._monitor_workers is gone: {where}"
    parameters = list(inspect.signature(LocalElasticAgent._monitor_workers).parameters)
    assert parameters == ["self", "worker_group"], f"the parameters of LocalElasticAgent._monitor_workers changed: {where}"
    folder = Path(inspect.getfile(LocalElasticAgent)).parent
    sources = "".join((folder / name).read_text() for name in ("api.py", "local_elastic_agent.py"))
    for attribute in ("self._remaining_restarts", "self._worker_group", "self._monitor_workers("):
        assert attribute in sources, f"LocalElasticAgent no longer uses {attribute}: {where}"

"""The service beside a model of it in memory; `make fuzz` runs this for longer, and without nginx too."""

import os
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.caller import Answer, Client
from tests.model.doors import Doors
from tests.stack import Stack

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FEW, STEPS = 10, 50


def run(stack: Stack, client_kind: type[Client] = Client, *, examples: int, is_random: bool = False) -> None:
    """Many short lives of an account, the same ones each time or other ones; of these the shortest that fails."""
    kind = type("MachineOfStack", (Doors,), {"stack": stack, "client_kind": client_kind})
    phases = [Phase.generate, Phase.shrink] if is_random else [Phase.generate]
    run_state_machine_as_test(kind, settings=settings(
        max_examples=examples, stateful_step_count=STEPS, derandomize=not is_random, deadline=None, database=None,
        phases=phases, suppress_health_check=list(HealthCheck)))


# what nginx has no part in needs no second look each time
@pytest.mark.parametrize("front", ["nginx", "direct"] if EXAMPLES else ["nginx"])
def test_service_does_what_the_model_does(request: pytest.FixtureRequest, front: str) -> None:
    run(request.getfixturevalue(f"{front}_stack"), examples=EXAMPLES or FEW, is_random=EXAMPLES > 0)


# --- mistakes of the service, made between it and its client: the machine has to see each ---

class WithoutConditions(Client):
    """The service looks at no entity tag."""

    def send(self, method: str, address: str, data: object = None, *, headers: Mapping[str, str] | None = None,
             query: Mapping[str, object] | None = None) -> Answer:
        """Leave the conditions out."""
        kept = {name: value for name, value in (headers or {}).items() if not name.startswith("If-")}
        return super().send(method, address, data, headers=kept, query=query)


class WithoutTrash(Client):
    """The service deletes for good whatever is deleted."""

    def send(self, method: str, address: str, data: object = None, *, headers: Mapping[str, str] | None = None,
             query: Mapping[str, object] | None = None) -> Answer:
        """Delete for good."""
        if (method, address) == ("DELETE", "/file"):
            query = {**(query or {}), "permanent": "true"}
        return super().send(method, address, data, headers=headers, query=query)


class WithoutDigests(Client):
    """The service stores what was announced to be something else."""

    def send(self, method: str, address: str, data: object = None, *, headers: Mapping[str, str] | None = None,
             query: Mapping[str, object] | None = None) -> Answer:
        """Leave the digests out."""
        kept = {name: value for name, value in (headers or {}).items() if not name.endswith("-Digest")}
        return super().send(method, address, data, headers=kept, query=query)


@pytest.mark.mutant("A1", "conditions, the trash or digests left out")
@pytest.mark.parametrize("client_kind", [WithoutConditions, WithoutTrash, WithoutDigests])
def test_service_that_is_wrong_is_found_out(nginx_stack: Stack, client_kind: type[Client]) -> None:
    with pytest.raises(AssertionError):
        run(nginx_stack, client_kind, examples=50)

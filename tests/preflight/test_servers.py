"""Servers with two segmenters are found before a run; one that does not answer yet is no problem."""

from __future__ import annotations

from typing import Any

from samr1_verl.config import ConfigError, Samr1Config, samr1_config
from samr1_verl.preflight.callback import examine_config
from samr1_verl.preflight.servers import check_servers
from tests.attack.client_world import always
from tests.attack.hostile_server import answer, hostile_server
from tests.composing import compose_recipe
from tests.errors import refused
from tests.service.servers import free_port

BOXES, CIRCLES = ({"segmenter": name, "busy_seconds": 0.0} for name in ("boxes/1", "circles/2"))


def composed(*addresses: str, **options: Any) -> Any:
    recipe = compose_recipe("samr1_tiny")
    recipe.samr1.segmenter.service.mode = "http"
    recipe.samr1.segmenter.service.http = {"addresses": list(addresses), **options}
    return recipe


def settings(*addresses: str, **options: Any) -> Samr1Config:
    return samr1_config(composed(*addresses, **options))


def test_two_segmenters_are_named_with_their_addresses() -> None:
    with hostile_server(always(answer(BOXES))) as one, hostile_server(always(answer(CIRCLES))) as two:
        (problem,) = check_servers(settings(one.address, two.address))
        assert f"{one.address} has boxes/1; {two.address} has circles/2" in problem
        (problem,) = check_servers(settings(one.address, two.address, identity="boxes/1"))
        assert "http.identity is boxes/1," in problem and f"{two.address} has circles/2." in problem
        subjects = {subject: problems for subject, _, problems in examine_config(composed(one.address, two.address))}
        assert any("circles/2" in problem for problem in subjects["segmenter"]), "the preflight asks"


def test_one_segmenter_and_servers_that_do_not_answer_are_no_problem() -> None:
    with hostile_server(always(answer(BOXES))) as one, hostile_server(always(answer(BOXES))) as two:
        addresses = one.address, two.address, f"http://127.0.0.1:{free_port()}"
        assert list(check_servers(settings(*addresses))) == []
        assert list(check_servers(settings(*addresses, identity="boxes/1"))) == []
        assert one.asked and two.asked


def test_an_empty_identity_is_refused() -> None:
    with refused(ConfigError, "invalid_value", "samr1.segmenter.service.http.identity: ", "found ''"):
        settings("http://127.0.0.1:1", identity="")

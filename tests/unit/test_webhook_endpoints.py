"""Where notifications may go: what every form of an inward address is taken for."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from control_plane.errors import RefusedError
from control_plane.settings import WebhookSettings
from control_plane.webhooks.deliverer import pause_seconds
from control_plane.webhooks.endpoints import CheckedResolver, ForbiddenAddressError, check_host, endpoint, is_public
from control_plane.webhooks.signing import Signer

SETTINGS = WebhookSettings()


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/",
        "file:///etc/passwd",
        "gopher://hooks.example.org/",
        "data:text/plain,x",
        "//hooks.example.org/x",
        "hooks.example.org",
        "",
        "https://",
        "https:///x",
        "https://user@hooks.example.org/",
        "https://user:word@hooks.example.org/",
        "https://hooks.example.org:0/",
        "https://hooks.example.org:70000/",
        "https://hooks.example.org/#part",
        "https://hooks.example.org/a b",
        "https://hooks.example.org/\r\nx-evil: 1",
        "https://hooks.example.org\\@127.0.0.1/",
        "https://hooks.exämple.org/",
        "https://[fe80::1%25eth0]/",
        "https://[::1/",
        "https://hooks.example.org/" + "x" * 2_000,
    ],
)
def test_a_url_that_is_never_called_is_refused_with_its_field(url: str) -> None:
    with pytest.raises(RefusedError) as caught:
        endpoint(url, SETTINGS, "webhook.url")
    assert [violation.path for violation in caught.value.violations] == ["webhook.url"]


def test_a_url_that_is_called() -> None:
    found = endpoint("https://Hooks.Example.org:8443/a?b=c", SETTINGS, "webhook.url")
    assert (found.host, found.port) == ("hooks.example.org", 8443)
    assert endpoint("http://hooks.example.org/", WebhookSettings(allow_http=True), "webhook.url").port == 80


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "127.1", "0", "127.0.0.1", "localhost"),
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
    ],
)
async def test_every_spelling_of_an_inward_address_is_refused_after_resolution(host: str) -> None:
    with pytest.raises(ForbiddenAddressError):
        await CheckedResolver(SETTINGS).resolve(host, 443)
    url = f"https://[{host}]/" if ":" in host else f"https://{host}/"
    with pytest.raises(RefusedError) as caught:
        await check_host(endpoint(url, SETTINGS, "webhook.url"), SETTINGS, "webhook.url")
    assert [violation.path for violation in caught.value.violations] == ["webhook.url"]


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


async def test_a_host_of_the_settings_may_be_inside() -> None:
    [*found] = await CheckedResolver(WebhookSettings(private_hosts=("LocalHost",))).resolve("localhost", 443)
    assert {one["host"] for one in found} <= {"127.0.0.1", "::1"}
    assert found


def test_a_signature_is_that_of_standard_webhooks() -> None:
    signer, webhook_id = Signer(b"k" * 32), "2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11"
    headers = signer.headers(webhook_id, "message", '{"a":1}', 1_790_000_000)
    secret = base64.b64decode(signer.secret(webhook_id).removeprefix("whsec_"))
    expected = base64.b64encode(hmac.digest(secret, b'message.1790000000.{"a":1}', hashlib.sha256)).decode()
    assert headers == {"webhook-id": "message", "webhook-timestamp": "1790000000", "webhook-signature": f"v1,{expected}"}
    assert signer.secret(webhook_id) != signer.secret("7d8a1b90-0c7e-4b57-8f1d-3f5a2c9e4b12")
    assert Signer(b"l" * 32).secret(webhook_id) != signer.secret(webhook_id)


def test_pauses_grow_and_are_bounded() -> None:
    pauses = [pause_seconds(tries) for tries in range(1, 60)]
    assert pauses[:4] == [5.0, 20.0, 80.0, 320.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 6 * 3_600

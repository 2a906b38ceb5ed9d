"""Internals of Faust and mode that the engine leans on. A failure says what broke and where it is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faust
import pytest
from faust._cython import streams as cython_streams
from faust.assignor.client_assignment import ClientAssignment
from faust.assignor.partition_assignor import PartitionAssignor
from faust.stores import STORES
from faust.stores import base as stores
from faust.tables.recovery import Recovery
from faust.transport import consumer as transport
from faust.transport.conductor import ConductorCompiler
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import ConsumerMessage, Message
from mode.utils.logging import FileLogProxy
from mode.utils.queues import FlowControlEvent, FlowControlQueue

from millstream.errors import ConfigError
from millstream.settings import Settings
from streams.engine.agents import Agent
from streams.engine.app import App, EventTopic
from streams.engine.assignor import Assignor
from streams.engine.consumer import Consumer
from streams.engine.membership import ConsumerThread, RebalanceListener
from streams.engine.producer import Producer
from streams.engine.transport import Transport
from tables.store import Store
from tables.table import Table


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(Settings(app_id="contract", data_dir=tmp_path))


def test_transports_and_stores_are_found_by_url_scheme(app: App) -> None:
    why = "streams/engine/transport.py registers `millstream://` with it"
    assert TRANSPORTS.by_url("millstream://") is Transport, f"TRANSPORTS.aliases has no effect: {why}"
    assert STORES.by_url("millstream://") is Store, f"STORES.aliases has no effect: {why}"
    assert isinstance(app.transport, Transport)
    assert isinstance(app.Table("t").data, Store)


def test_the_app_takes_our_classes_and_settings(app: App) -> None:
    """streams/engine/app.py."""
    assert app.conf.Agent is Agent
    assert app.conf.Table is Table
    assert app.conf.Topic is EventTopic
    assert app.conf.PartitionAssignor is Assignor
    conf = app.conf
    assert (conf.topic_disable_leader, conf.table_standby_replicas, conf.recovery_consistency_check) == (True, 0, False)
    assert (conf.stream_wait_empty, conf.broker_request_timeout, conf.web_bind) == (False, 3600.0, "127.0.0.1")
    assert conf.processing_guarantee.value == "at_least_once", "Faust's own transactions would run beside ours"
    assert isinstance(app.assignor, Assignor)


def calls_in_order(function: Callable[..., Any], *calls: str) -> bool:
    source = inspect.getsource(function)
    places = [source.find(call) for call in calls]
    return -1 not in places and places == sorted(places)


@pytest.mark.parametrize("function", [Recovery._resume_streams, Recovery.on_recovery_completed])
def test_an_assignment_is_loaded_before_the_queues_are_cleared_and_the_flow_begins(function: Any) -> None:
    assert calls_in_order(function, "perform_seek()", "flow_control.resume()", "consumer.resume_flow()"), (
        f"{function.__qualname__} no longer calls perform_seek -> flow_control.resume -> consumer.resume_flow: "
        "streams/engine/consumer.py loads in the first and begins in the last; the middle one drops what is queued"
    )


async def test_resuming_the_flow_clears_the_queues_of_ordinary_agents() -> None:
    flow = FlowControlEvent()
    queue: FlowControlQueue[int] = FlowControlQueue(flow_control=flow, clear_on_resume=True)
    queue.put_nowait(1)
    flow.resume()
    assert queue.empty(), "if nothing is dropped any more, streams/engine/consumer.py may begin in perform_seek"


def test_the_fetcher_hands_reading_over_to_the_consumer() -> None:
    assert "consumer._drain_messages(self)" in inspect.getsource(transport.Fetcher), (
        "Faust's fetcher no longer calls Consumer._drain_messages: streams/engine/consumer.py would read nothing"
    )


OVERRIDDEN = [
    (Consumer, transport.ThreadDelegateConsumer, ["on_partitions_revoked", "on_partitions_assigned", "perform_seek"]),
    (Consumer, transport.Consumer, ["resume_flow", "_drain_messages", "commit", "on_task_error", "verify_event_path"]),
    (Consumer, driver.Consumer, ["_new_consumer_thread"]),
    (ConsumerThread, driver.AIOKafkaConsumerThread, ["_create_worker_consumer", "subscribe", "getmany"]),
    (RebalanceListener, driver.ConsumerRebalanceListener, ["on_partitions_assigned"]),
    (Assignor, PartitionAssignor, ["_perform_assignment"]),
    (Table, faust.Table, ["on_key_set", "on_key_del", "partition_for_key", "using_window"]),
    (Agent, faust.Agent, ["on_start"]),
    (EventTopic, faust.Topic, ["on_key_decode_error", "on_value_decode_error"]),
    (App, faust.App, ["on_first_start", "on_start", "_stop_consumer", "topic"]),
    (Store, stores.SerializedStore, ["_get", "_set", "_del", "_contains", "_clear", "_size", "_iteritems"]),
    (Store, stores.Store, ["persisted_offset", "set_persisted_offset", "backup_partition", "restore_backup"]),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "name"), [(ours, theirs, name) for ours, theirs, names in OVERRIDDEN for name in names]
)
def test_every_method_that_we_override_exists_and_is_called_as_before(ours: type, theirs: type, name: str) -> None:
    where = f"{inspect.getsourcefile(ours)}: {ours.__name__}.{name}"
    original = getattr(theirs, name, None)
    assert original is not None, f"{theirs.__name__}.{name} is gone, nobody would call {where}"
    override = getattr(ours, name)
    assert override is not original, f"{where} overrides nothing"
    assert inspect.iscoroutinefunction(override) == inspect.iscoroutinefunction(original), f"{where}: async differs"
    wanted = [p for p in inspect.signature(original).parameters.values() if p.default is p.empty]
    taken = inspect.signature(override).parameters.values()
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in taken)
    assert open_ended or len([p for p in wanted if p.kind is not p.VAR_KEYWORD]) <= len(taken), (
        f"{where} does not take {[p.name for p in wanted]}"
    )


def test_table_changes_go_through_the_hooks_that_we_silence() -> None:
    from faust.tables import table
    from mode.utils.collections import ManagedUserDict

    why = "a table may send to its changelog itself, past the transaction: tables/table.py"
    assert issubclass(faust.Table, ManagedUserDict), why
    assert "self.on_key_set(" in inspect.getsource(ManagedUserDict.__setitem__), why
    assert "self.on_key_del(" in inspect.getsource(ManagedUserDict.__delitem__), why
    sends = [
        name
        for name, function in inspect.getmembers(table.Table, inspect.isfunction)
        if {"send_changelog", "_send_changelog"} & set(function.__code__.co_names)
    ]
    assert set(sends) <= {"on_key_set", "on_key_del", "_send_changelog"}, f"{sends}: {why}"


@pytest.mark.parametrize("kind", ["SetTable", "GlobalTable", "SetGlobalTable"])
def test_tables_that_pass_by_those_hooks_are_refused(app: App, kind: str) -> None:  # rule 10
    with pytest.raises(ConfigError, match=f"{kind} 't'"):
        getattr(app, kind)("t")


def test_the_rebalance_listener_reaches_thread_and_generation() -> None:
    source = inspect.getsource(driver.ConsumerRebalanceListener.on_partitions_assigned)
    assert "_coordinator.generation" in source, "streams/engine/membership.py reads it in the same place"
    assert "consumer_generation_id = generation" in source, "streams/engine/loading.py compares with it"


def test_the_compiled_stream_iterator_acknowledges_by_setting_an_attribute() -> None:
    source = Path(cython_streams.__file__).with_name("streams.pyx").read_text()
    assert "message.acked = True" in source, (
        "the compiled iterator acknowledges in another way: streams/engine/task.py EventMessage.acked counts on it"
    )
    assert "consumer._acked_index[tp]" in source, "streams/engine/consumer.py commit() clears it"
    assert "acked" in Message.__slots__


def test_a_message_of_ours_is_told_of_its_last_acknowledgement() -> None:
    from streams.engine.chunk import Chunk
    from streams.engine.task import EventMessage

    told = []

    class Told(Chunk):
        def __init__(self) -> None: ...

        def finished(self) -> None:
            told.append(1)

    class Consuming:
        def ack(self, message: Any) -> bool:
            message.acked = True
            return True

    message = EventMessage("t", 0, 1, 1.0, 0, (), None, b"", None, 0, 0)
    assert isinstance(message, ConsumerMessage)
    message.chunk = Told()
    message.incref(2)
    message.ack(Consuming())  # type: ignore[arg-type]
    assert (message.refcount, told) == (1, [])
    message.ack(Consuming())  # type: ignore[arg-type]
    assert told == [1], "Message.ack does not end in setting `acked`: streams/engine/task.py would wait for ever"


def test_an_event_that_cannot_be_decoded_is_acknowledged_before_its_topic_is_told() -> None:  # T13
    source = inspect.getsource(ConductorCompiler.build)
    assert calls_in_order(ConductorCompiler.build, "message.ack(", "on_key_decode_error("), (
        "streams/engine/app.py EventTopic adds the dead letter right after that, before anything else runs"
    )
    assert "message.incref(channels_n)" in source, (
        "streams/engine/task.py tells by refcount 0 that nobody took an event"
    )


def test_the_assignor_has_the_parts_that_ours_uses() -> None:
    """streams/engine/assignor.py."""
    for name in ("_get_client_metadata", "_update_member_urls", "_protocol_assignments"):
        assert callable(getattr(PartitionAssignor, name, None)), f"PartitionAssignor.{name} is gone"
    parameters = list(inspect.signature(PartitionAssignor._protocol_assignments).parameters)
    assert len(parameters) == 5, f"_protocol_assignments now takes {parameters}"
    assignment = ClientAssignment(actives={"t": [0]}, standbys={})
    assert {tuple(tp) for tp in assignment.active_tps} == {("t", 0)}


def test_the_app_producer_is_ours_and_takes_what_faust_passes(app: App) -> None:
    """streams/engine/producer.py: no side door."""
    assert isinstance(app.producer, Producer)
    from faust.transport.base import Producer as Base

    for name in ("send", "send_and_wait", "send_soon", "flush", "create_topic"):
        wanted = list(inspect.signature(getattr(Base, name)).parameters)
        assert list(inspect.signature(getattr(Producer, name)).parameters) == wanted, f"Producer.{name}: {wanted}"


def test_mode_replaces_stderr_by_a_proxy_that_we_undo() -> None:
    assert FileLogProxy.__init__, "streams/engine/app.py on_first_start gives stderr back to the log handler"
    from mode import worker

    assert "redirect_stdouts" in inspect.getsource(worker)


def test_the_event_being_processed_is_found_by_its_message() -> None:
    """tables/scope.py: a plain agent's table changes belong to the chunk on the message."""
    assert faust.current_event() is None
    assert "message" in inspect.signature(faust.Event.__init__).parameters

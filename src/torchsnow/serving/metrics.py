"""What Prometheus reads from a server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from torchsnow.serving.loop import Loop

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The figures of one server, in a registry of their own. Labels are names of tasks, routes and codes of ours."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.queue = Gauge("torchsnow_queue_images", "Images that wait or are being worked on", registry=registry)
        self.tasks = Gauge("torchsnow_tasks", "Tasks that answer", registry=registry)
        self.unusable = Gauge("torchsnow_unusable_tasks", "Tasks whose files are damaged", registry=registry)
        self.passes = Counter("torchsnow_source_passes", "Passes through the source", registry=registry)
        self.batch_size = Histogram("torchsnow_batch_images", "Images of a pass", registry=registry, buckets=_IMAGES)
        self.latency_s = Histogram(
            "torchsnow_request_seconds", "From request to answer", ["task"], registry=registry, buckets=_SECONDS
        )
        self.rejected = Counter("torchsnow_rejected", "What was not answered, by reason", ["reason"], registry=registry)
        self.requests = Counter("torchsnow_requests", "Requests", ["route", "status"], registry=registry)
        self._loop_age = Gauge(
            "torchsnow_loop_age_seconds", "Since the last good round of a background loop", ["loop"], registry=registry
        )
        self._seen: set[str] = set()

    def watch(self, loop: Loop) -> None:
        """Tell the age of a background loop."""
        self._loop_age.labels(loop.name).set_function(loop.age_s)

    def answered(self, names: Iterable[str], seconds: float) -> None:
        """A request for these tasks was answered."""
        for name in names:
            self._seen.add(name)
            self.latency_s.labels(name).observe(seconds)

    def keep(self, names: Iterable[str]) -> None:
        """Forget tasks that are gone, so that the labels of a hub that changes for years stay few."""
        for name in self._seen - set(names):
            self._seen.discard(name)
            with suppress(KeyError):
                self.latency_s.remove(name)

    def text(self) -> str:
        """All figures, in Prometheus' text format."""
        return generate_latest(self._registry).decode()


def together(texts: Sequence[str | None]) -> str:
    """The figures of several workers in one text: every line has the label `worker`, for sums are Prometheus' business.

    None is of a worker that did not answer; `torchsnow_worker_up` says which did.
    """
    return generate_latest(_Workers(texts)).decode()


class _Workers(Collector):
    def __init__(self, texts: Sequence[str | None]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("torchsnow_worker_up", "Whether a worker process answers", labels=["worker"])
        families: dict[str, Metric] = {}
        for number, text in enumerate(self._texts):
            up.add_metric([str(number)], float(text is not None))
            for family in text_string_to_metric_families(text or ""):
                ours = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    ours.add_sample(sample.name, {**sample.labels, "worker": str(number)}, sample.value)
        return [up, *families.values()]

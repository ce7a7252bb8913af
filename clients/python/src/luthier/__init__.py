"""Client of Luthier, a self-hosted fine-tuning service. The messages of the API are in `luthier.v1`; those that a job
is made of are here too."""

from luthier.aio import AsyncClient
from luthier.channel import Tls
from luthier.client import Client
from luthier.errors import Error, FieldViolation, Unreachable
from luthier.retry import RetryPolicy
from luthier.v1.jobs_pb2 import (
    CheckpointConfig,
    DatasetSelection,
    EvaluationConfig,
    FineTuningJob,
    FineTuningSpec,
    FullTuning,
    LoraTuning,
    ModelExport,
    Resources,
    Task,
    TrainingConfig,
)
from luthier.v1.sweeps_pb2 import Sweep, SweepJob
from luthier.watch import JobUpdate, best_of, is_over, is_sweep_over

__all__ = [
    "AsyncClient", "CheckpointConfig", "Client", "DatasetSelection", "Error", "EvaluationConfig", "FieldViolation",
    "FineTuningJob", "FineTuningSpec", "FullTuning", "JobUpdate", "LoraTuning", "ModelExport", "Resources",
    "RetryPolicy", "Sweep", "SweepJob", "Task", "Tls", "TrainingConfig", "Unreachable", "best_of", "is_over",
    "is_sweep_over",
]

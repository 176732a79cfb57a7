"""Defines every setting of the steps with its meaning, unit and range; flags, `--help` and job arguments derive from here."""

from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, model_validator

from server.cli import Names, Settings

S = TypeVar("S", bound=Settings)


NOT_OF_THE_MODEL = {
    "resume", "allow_changed_world", "checkpoint_steps", "checkpoint_minutes", "keep_last", "keep_best", "log_steps", "profile_steps",
    "timeout_minutes", "hang_minutes",
}  # fmt: skip
"""Settings of training that do not change the model, so that a resume may change them."""

CHOSEN = ("epochs", "learning_rate", "warmup_fraction", "early_stopping_patience")
"""Settings of training that are chosen by data and encoder where they are not set, and kept by a resume."""


class ModelConfig(Settings):
    """Settings that preprocess and train share."""

    model: str = "tiny"
    """Encoder to fine-tune: a folder, a Hugging Face id, or `tiny`: a small DistilBERT with random weights that needs no download."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random: the splits, the order of rows, weights, dropout."""


class PreprocessConfig(ModelConfig):
    """Settings of the preprocess step."""

    data: str = Field(default="sample", min_length=1)
    """Training rows: a folder with train and test files, a CSV, TSV, JSON Lines or Parquet file (also .gz, .xz), a Hugging Face dataset id, `sample`, or `sample:ROWS`."""

    test_data: str | None = None
    """Test rows, as a file. By default the test file beside the training file in its folder, or else rows split off from the training rows."""

    text_column: Names = ()
    """Columns that make the text, joined by a space; with commas between names, or numbers from 1 in a file without a header. By default found by the usual names."""

    label_column: str | None = None
    """Column with the class, by its name, or its number from 1 in a file without a header. By default found by the usual names."""

    class_names: Names = ()
    """Classes in order, with commas between names. Rows hold the names, or their numbers (from 1 in a file without a header, else from 0) unless names are numbers. By default those in the training rows; any other is an unknown class."""

    bad_rows: Literal["stop", "skip"] = "stop"
    """Treatment of a row that cannot be used: stop with its file, line and reason, or skip it, count it by reason and write it to bad_rows.jsonl."""

    validation_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the training rows for validation, chosen by a hash of text and seed, so that a text keeps its split: the best epoch and the temperature are chosen on it."""

    test_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the rows, chosen likewise, that are split off as test rows where there is no test file."""

    max_train_rows: int | None = Field(default=None, ge=1)
    """Rows to train on at most: of each class its share, and at least one. By default all."""

    max_length: int = Field(default=128, ge=8, le=8192)
    """Tokens of a text at most, [CLS] and [SEP] included; a longer text is truncated and counted."""

    @model_validator(mode="after")
    def _data_settings_agree(self) -> Self:
        if self.data.split(":")[0] == "sample":
            for name in ("test_data", "text_column", "label_column", "class_names"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} has no meaning with data = {self.data!r}, which brings its own: leave it out"
                    )
        if self.test_data and self.test_fraction != type(self).model_fields["test_fraction"].default:
            raise ValueError("test_fraction contradicts test_data: with a file of test rows, none are split off")
        if self.label_column in self.text_column:
            raise ValueError(f"label_column = {self.label_column!r} contradicts text_column, which names it too")
        for field, names in (("text_column", self.text_column), ("class_names", self.class_names)):
            if len(set(names)) != len(names):
                raise ValueError(f"{field} has a name twice: {', '.join(names)}")
        if len(self.class_names) == 1:
            raise ValueError("class_names needs two classes or more")
        return self


class TrainConfig(ModelConfig):
    """Settings of the train step."""

    epochs: int | None = Field(default=None, ge=1, le=1000)
    """Passes over the training rows. By default chosen by the data: 3, or as many as few rows or many classes need, up to 20, with early stopping."""

    batch_size: int = Field(default=32, ge=1, le=65536)
    """Examples per process per forward pass. An optimizer step sees batch_size × processes × accumulation_steps."""

    accumulation_steps: int = Field(default=1, ge=1, le=4096)
    """Forward passes per optimizer step."""

    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate, after warm-up. By default chosen by the size of the encoder, up to 3e-4 for a small one, 4e-5 for BERT's, and by the rows of a class that it sees, down to 5e-5 for many; 1e-3 for `tiny`."""

    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share of all steps in which the learning rate rises from 0; it falls to 0 over the others. By default 0.06, and up to 0.2 where that were fewer than 20 steps."""

    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """AdamW's decay of weight matrices; biases and norms do not decay."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which gradients are clipped."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the forward pass: bf16 where the processor computes in it (auto), or always one of them. Weights stay fp32."""

    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """Parallelism: processes share gradients (ddp), or weights and optimizer too, for encoders that do not fit: over all processes (fsdp), or over those of a machine, with a copy on each machine (hsdp)."""

    shard_ranks: int | None = Field(default=None, ge=1)
    """With hsdp, processes over which one copy of weights is spread. By default those of a machine."""

    gradient_compression: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    """With ddp, compression of gradients for a slow network: half the bits (bf16 needs NCCL), or PowerSGD of rank 4. PowerSGD's error feedback is not saved: a run that is resumed with it is not bit for bit the same."""

    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Epochs without a better validation accuracy after which training ends. By default half of the epochs where these are chosen by the data and more than 3; else it never ends early."""

    resume: Literal["auto", "never"] = "auto"
    """Resume from the last checkpoint of this run (auto), or move it aside and start over (never)."""

    allow_changed_world: bool = False
    """Resume from a checkpoint that was made with another number of processes or batch size, with the rows that its epoch has left."""

    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps from one checkpoint in mid-epoch to the next. By default time alone decides."""

    checkpoint_minutes: float = Field(default=10, gt=0)
    """Minutes from one checkpoint in mid-epoch to the next. There is one after each epoch, too."""

    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints to keep; with two, there is one before a damaged one."""

    keep_best: int = Field(default=1, ge=1)
    """Checkpoints of the best epochs to keep in addition."""

    log_steps: int = Field(default=10, ge=1)
    """Optimizer steps from one line of the training log to the next."""

    profile_steps: int = Field(default=0, ge=0, le=1000)
    """Optimizer steps, after the first three, of which each process writes a trace for Perfetto and TensorBoard into logs/profile; the log has a summary by phase."""

    timeout_minutes: float = Field(default=10, gt=0)
    """Minutes after which a process that waits for another gives up."""

    hang_minutes: float = Field(default=5, gt=0)
    """Minutes without a step after which every process writes its stack to the log, and training ends."""

    max_skipped_steps: int = Field(default=10, ge=1)
    """Steps in a row with a loss or gradient that is not finite, which are skipped, after which training stops."""

    @model_validator(mode="after")
    def _training_settings_agree(self) -> Self:
        if self.epochs is not None and (self.early_stopping_patience or 0) >= self.epochs:
            raise ValueError(
                f"early_stopping_patience = {self.early_stopping_patience} contradicts epochs = {self.epochs}: "
                "it could never end training; make it smaller or leave it out"
            )
        if self.shard_ranks is not None and self.strategy != "hsdp":
            raise ValueError(
                f"shard_ranks has no meaning with strategy = {self.strategy!r}: leave it out, or take hsdp"
            )
        if self.gradient_compression != "none" and self.strategy != "ddp":
            raise ValueError(
                f"gradient_compression has no meaning with strategy = {self.strategy!r}: leave it out, or take ddp"
            )
        return self


class TrainArguments(TrainConfig):
    """Fine-tune a text classifier; torchrun starts it, with one process or many."""

    dataset: Path
    """Folder that preprocess wrote."""

    output: Path
    """Folder of the run, in which checkpoints, logs and model are written."""


class EvaluateConfig(Settings):
    """Settings of the evaluate step."""

    mistakes_shown: int = Field(default=20, ge=0, le=200)
    """Most confident mistakes that the report shows with their texts."""


FEWEST_CHECK_ROWS = 500


class ExportConfig(Settings):
    """Settings of the export step."""

    check_rows: int = Field(default=1000, ge=FEWEST_CHECK_ROWS)
    """Test rows at most on which an exported model is compared with the trained one, alone and in batches; all where there are fewer."""


class GateConfig(Settings):
    """Settings of the gate step."""

    min_accuracy: float = Field(default=0.8, ge=0, le=1)
    """Accuracy on the test rows below which a model is not exported or served, from 0 to 1."""

    max_accuracy_drop: float = Field(default=0.01, ge=0, le=1)
    """Accuracy on the same test rows that a new model may lose against the model now served, from 0 to 1."""


class LaunchConfig(Settings):
    """Settings of training on this machine."""

    ranks: int | None = Field(default=None, ge=1, le=64)
    """Processes that train together on this machine. By default one for each GPU; on a CPU one, with all CPUs that it may use."""

    max_restarts: int = Field(default=3, ge=0, le=100)
    """Restarts of training, from its last checkpoint, when one of its processes dies or hangs."""


class RunConfig(PreprocessConfig, TrainConfig, EvaluateConfig, GateConfig, ExportConfig, LaunchConfig):
    """All settings of a run."""


def part(config: Settings, kind: type[S]) -> S:
    """Picks the settings of one step from those of a run or of a command."""
    return kind(**{name: getattr(config, name) for name in kind.model_fields})

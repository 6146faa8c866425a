"""Dynamic loss scaling of fp16, DeepSpeed's, as plain data for a checkpoint (Micikevicius et al. 2018,
section 3.2).

    was_skipped(engine)                      # after a step: its gradients overflowed, no weight was changed
    state = scale_of(engine)                 # in a checkpoint
    restore_scale(engine, state)             # a resumed run scales and skips as an unbroken one

The loss is multiplied by a scale before the backward pass, so that small gradients do not vanish; where some
overflow, the update is left out and the scale halved; after a thousand good steps it is doubled. A step that
is left out still counts: its samples are used up, the learning rate and the average go on; AdamW's own count
does not. In fp32 and bf16 there is no scale, and nothing here does anything.
"""

from typing import Any

from training.checkpoints.store import ScaleState

# of DeepSpeed 0.19.8's DynamicLossScaler
INITIAL_POWER = 16
WINDOW = 1000


def _scaler(engine: Any) -> Any:
    """DeepSpeed's, of an optimiser at ZeRO 1 to 3; None without dynamic scaling."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None


def prepare_scaler(engine: Any) -> None:
    """An overflow at the smallest scale is a failed step like any other: DeepSpeed would raise an error."""
    scaler = _scaler(engine)
    if scaler:
        scaler.raise_error_at_min_scale = False


def loss_scale(engine: Any) -> float:
    """The scale of the next step; 0 without scaling."""
    scaler = _scaler(engine)
    return float(scaler.cur_scale) if scaler else 0.0


def was_skipped(engine: Any) -> bool:
    """Whether the last step changed no weight because gradients overflowed.

    Not where the scale can fall no more: such gradients are infinite by themselves.
    """
    scaler = _scaler(engine)
    return bool(scaler and engine.optimizer.overflow and scaler.cur_scale > scaler.min_scale)


def scale_of(engine: Any) -> ScaleState | None:
    """What decides the scales and skips from here on; None without scaling."""
    scaler = _scaler(engine)
    if not scaler:
        return None
    return {
        "scale": float(scaler.cur_scale),
        "steps": scaler.cur_iter,
        "last_overflow": scaler.last_overflow_iter,
        "hysteresis": scaler.cur_hysteresis,
        "skipped": engine.skipped_steps,
    }


def restore_scale(engine: Any, state: ScaleState) -> None:
    """The inverse of `scale_of`."""
    scaler = _scaler(engine)
    scaler.cur_scale = state["scale"]
    scaler.cur_iter = state["steps"]
    scaler.last_overflow_iter = state["last_overflow"]
    scaler.cur_hysteresis = state["hysteresis"]
    engine.skipped_steps = state["skipped"]

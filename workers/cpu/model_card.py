"""The model card of a package: what it is, how well it does, what it was made of."""

from __future__ import annotations

from workers.workflows.contracts import PackageInput, Sample

_SAMPLE_CHARACTERS_MAX = 600


def model_card(argument: PackageInput) -> str:
    """The card as markdown. Equal input gives equal text, so that a repeated packaging makes the same package."""
    job, spec, scores = argument.context.job, argument.context.job.spec, argument.scores
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {spec.base_model}",
        "tags: [lora, headway]",
        "---",
        "",
        f"# {spec.output_model}",
        "",
        f"A LoRA adapter for `{spec.base_model}`, fine-tuned on the dataset `{spec.dataset.name}` of project `{job.project}`.",
        "",
        "## Evaluation",
        "",
        f"Loss in nats per target token on {scores.rows} held-out rows that share no question and no answer with the training",
        "rows, each with its standard error.",
        "",
        "| model | loss | standard error |",
        "|---|---|---|",
        f"| base | {scores.base_loss:.4f} | {scores.base_loss_se:.4f} |",
        f"| tuned | {scores.tuned_loss:.4f} | {scores.tuned_loss_se:.4f} |",
        f"| gain, paired | {scores.gain:.4f} | {scores.gain_se:.4f} |",
        "",
        *_samples(scores.samples),
        "## Training",
        "",
        f"- rows: {argument.prepared.train_rows} ({argument.prepared.train_tokens} trained tokens per pass)",
        f"- LoRA: rank {spec.lora.rank}, alpha {spec.lora.alpha}, dropout {spec.lora.dropout:g}",
        f"- steps: {argument.trained.steps}, each of {spec.training.micro_batch_size} x {spec.training.gradient_accumulation} "
        f"sequences of at most {spec.training.max_tokens} tokens",
        f"- learning rate: {spec.training.learning_rate:g} after {spec.training.warmup_steps} warm-up steps",
        f"- final training loss: {argument.trained.final_loss:.4f}",
        "",
        "## Lineage",
        "",
        f"- job: `{job.job_id}`",
        f"- dataset: SHA-256 `{spec.dataset.sha256}`",
        f"- base model: SHA-256 `{job.base_model_sha256}`",
        f"- spec: SHA-256 `{job.spec_sha256}`",
        "",
    ]
    return "\n".join(lines)


def _samples(samples: tuple[Sample, ...]) -> list[str]:
    if not samples:
        return []
    lines = ["## Samples", ""]
    for sample in samples:
        lines += [
            f"**{_shown(sample.prompt)}**",
            "",
            f"- before: {_shown(sample.before)}",
            f"- after: {_shown(sample.after)}",
            "",
        ]
    return lines


def _shown(text: str) -> str:
    """One line of text that cannot become markup of the card."""
    line = " ".join(text.split())[:_SAMPLE_CHARACTERS_MAX]
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>#|" else character for character in line)

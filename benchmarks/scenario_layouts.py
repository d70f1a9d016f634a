"""What the tables of scenarios show: rows, columns, and the text of their cells (see scenario_figures.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scenario_figures import ANY, Pick


@dataclass(frozen=True)
class Line:
    """A row or a column.

    Args:
        heading: of the line; a format string as cells are.
        pick: what narrows the table's pick.
        cell: text of its cells; of a row one for each column, too. Where both have one, the row's counts.
    """

    heading: str
    pick: Pick = ANY
    cell: str | tuple[str, ...] | None = None


@dataclass(frozen=True)
class Table:
    """A table of figures of a run.

    Args:
        pick: what all cells are of.
        corner: heading of the column of headings.
        columns: from the left.
        rows: from the top.
    """

    pick: Pick
    corner: str
    columns: Sequence[Line]
    rows: Sequence[Line]

    @property
    def runs(self) -> list[str]:
        """Return the runs that the figures are of."""
        found = [self.cell(row, column)[1].run for row in self.rows for column in self.columns]
        return list(dict.fromkeys(run for run in found if run))

    def cell(self, row: Line, column: Line) -> tuple[str, Pick]:
        """Return the text of a cell, and what it is of."""
        text = row.cell[self.columns.index(column)] if isinstance(row.cell, tuple) else row.cell or column.cell
        assert isinstance(text, str)
        return text, self.pick.narrowed(column.pick).narrowed(row.pick)


def _clients(*headings: str) -> tuple[Line, ...]:
    """Return a column for each client, in their order."""
    return tuple(Line(heading, Pick(clients=(number,))) for number, heading in enumerate(headings))


def _evaluated(score: str) -> str:
    """Return a cell with a score of an evaluator, and its interval."""
    return (
        f"{{evaluations[{score}]:.2f}} [{{evaluations[{score}, 95% from]:.2f}}, {{evaluations[{score}, 95% to]:.2f}}]"
    )


def _with_blank(first: tuple[str, ...], *headings: str) -> tuple[Line, ...]:
    """Return a row for each client, the first with cells of its own."""
    one, *others = _clients(*headings)
    return (replace(one, cell=first), *others)


PSNR = Line("PSNR, dB", cell="{psnr.mean:.1f}")
INTERVAL = Line("PSNR, dB", cell="{psnr.interval:.1f}")
SSIM = Line("SSIM", cell="{ssim.mean:.2f}")
_FLOOR = ("{own_mean.psnr.mean:.1f}", "{own_mean.ssim.mean:.2f}")
_PSNR_AND_SSIM = "{psnr.mean:.1f} ({ssim.mean:.2f})"


def _control(attack: str, cell: str | tuple[str, ...] = _FLOOR) -> Line:
    return Line("own mean color (control)", Pick(attack=attack), cell)


def _attack(name: str, heading: str | None = None) -> Line:
    return Line(heading or f"`{name}`", Pick(attack=name))


def _rule(name: str, heading: str | None = None) -> Line:
    return _attack(f"label_recovery rule={name}", heading or f"`{name}`")


def _fewer_tensors(run: str) -> Table:
    """Return what attacks find where little is sent, round by round, means of two clients of one image each."""
    newton = Pick(attack="regularized_newton")
    return Table(
        Pick(run=run),
        "two clients, one image each",
        tuple(Line(f"round {number}", Pick(round=number)) for number in (1, 2)),
        (
            Line("`label_count`: recall", Pick(attack="label_count"), "{label_recall.mean:.2f}"),
            Line("`head_features`: largest error", Pick(attack="head_features"), "{feature_error.most:.0e}"),
            Line("`regularized_newton`: PSNR, dB", newton, "{psnr.mean:.1f}"),
            Line("`inverting_gradients`, 100 steps: PSNR, dB", Pick(attack="inverting_gradients"), "{psnr.mean:.1f}"),
            Line("own mean color (control), dB", newton, "{own_mean.psnr.mean:.1f}"),
            Line("data set's mean (control), dB", newton, "{dataset_mean.psnr.mean:.1f}"),
            Line(
                "`regularized_newton` on the other client's update (control), dB",
                newton,
                "{wrong_update.psnr.mean:.1f}",
            ),
        ),
    )


_NOISE = Table(
    Pick(run="dp_noise_sweep"),
    "noise multiplier",
    _clients("0", "1e-5", "1e-4", "1e-3", "1e-2", "1"),
    (
        Line("PSNR, dB, mean of 20 images", cell="{psnr.mean:.1f}"),
        Line("beyond the own mean color, dB", cell="{beyond_own_mean.psnr.mean:+.1f}"),
    ),
)

TABLES = {
    "quickstart": Table(
        Pick(run="quickstart", attack="patch_embedding"),
        "client",
        (
            Line("defense", cell="{defenses}"),
            Line("images: `patch_embedding`", cell="{psnr.each:.1f} dB"),
            Line("own mean color", cell="{own_mean.psnr.each:.1f} dB"),
            Line("verdict", cell="{verdict[images]}"),
            Line(
                "labels: `label_count`", Pick(attack="label_count"), "recall {label_recall.mean:.2f}: {verdict[labels]}"
            ),
        ),
        (
            Line("0, 1, 2", Pick(clients=(0, 1, 2))),
            Line("3", Pick(clients=(3,))),
            Line("4", Pick(clients=(4,))),
            Line("5", Pick(clients=(5,))),
        ),
    ),
    "mjp": Table(
        ANY,
        "clients with `mjp`, gamma 0.5",
        (
            Line("none", Pick(run="mjp_plain")),
            Line("two of four", Pick(run="mjp")),
            Line("all", Pick(run="mjp_all")),
            Line("all, `dal: none`", Pick(run="mjp_without_dal")),
        ),
        (
            Line(
                "accuracy",
                cell=_evaluated("accuracy, not shuffled"),
            ),
            *(
                Line(
                    f"accuracy, {ratio:.0%} of the patches shuffled",
                    cell=_evaluated(f"accuracy at {ratio}"),
                )
                for ratio in (0.5, 0.9)
            ),
            *(
                Line(
                    f"consistency, {ratio:.0%} shuffled",
                    cell=_evaluated(f"consistency at {ratio}"),
                )
                for ratio in (0.5, 0.9)
            ),
            Line("most frequent answer (control)", cell="{evaluations[most frequent answer (control)]:.2f}"),
            Line("DiffNorm, 50% shuffled", cell="{evaluations[DiffNorm at 0.5]:.2f}"),
            Line("distance of two images (control)", cell="{evaluations[distance of two images (control)]:.2f}"),
            Line("probe: error of row and column, patches", cell="{evaluations[error of row and column]:.2f}"),
            Line(
                "the same of a table of noise (control)",
                cell="{evaluations[error of row and column, table of noise (control)]:.2f}",
            ),
            Line(
                "the same of the mean place (control)",
                cell="{evaluations[error of row and column, mean place (control)]:.2f}",
            ),
        ),
    ),
    "mjp_gamma": Table(
        Pick(run="mjp_gamma"),
        "gamma",
        _clients("0", "0.1", "0.27", "0.5"),
        (
            Line("PSNR of `patch_embedding`, dB, mean of 24 images", cell="{psnr.mean:.1f}"),
            Line("own mean color (control)", cell="{own_mean.psnr.mean:.1f}"),
        ),
    ),
    "dp_noise_sweep": _NOISE,
    "dp_noise_epsilon": Table(
        _NOISE.pick,
        "noise_multiplier",
        _NOISE.columns,
        (
            Line("PSNR, dB", cell="{psnr.mean:.1f}"),
            # Of the accountant alone (fedsim_defenses.dp_noise), whatever the images.
            Line("epsilon of one round, `replace`", cell=("none", "2.0e10", "2.0e8", "2.0e6", "2.1e4", "10.0")),
        ),
    ),
    "dp_sgd": Table(
        Pick(run="dp_sgd", attack="label_recovery"),
        "client",
        (
            Line("defense", cell="{defenses}"),
            Line("recall of `label_recovery`, mean of 6 rounds", cell="{label_recall.mean:.2f}"),
            Line("chance (control)", cell="{chance.label_recall.mean:.2f}"),
            Line("verdict on labels", cell="{verdict[labels]}"),
        ),
        (
            Line("0, 1, 2", Pick(clients=(0, 1, 2))),
            # Epsilons are of the accountant alone (fedsim_defenses.dp_sgd), whatever the images.
            Line("3, `noise_multiplier` 1, epsilon 2.3", Pick(clients=(3,))),
            Line("4, the same with adaptive clipping", Pick(clients=(4,))),
            Line("5, `noise_multiplier` 0.01, epsilon 3.3e4", Pick(clients=(5,))),
        ),
    ),
    "secure_aggregation": Table(
        ANY,
        "clients in the sum, one image each",
        tuple(Line(str(clients), Pick(run=f"secure_aggregation_{clients}")) for clients in (1, 2, 4, 10)),
        (
            Line(
                "recall of `label_recovery`, mean of 6 rounds", Pick(attack="label_recovery"), "{label_recall.mean:.2f}"
            ),
            Line("chance (control)", Pick(attack="label_recovery"), "{chance.label_recall.mean:.2f}"),
            Line(
                "pair accuracy of `gradient_alignment` (a coin: 0.50)",
                Pick(attack="gradient_alignment"),
                "{pair_accuracy.mean:.2f}",
            ),
            Line("PSNR of `patch_embedding`, dB", Pick(attack="patch_embedding"), "{psnr.mean:.1f}"),
            Line("own mean color (control), dB", Pick(attack="patch_embedding"), "{own_mean.psnr.mean:.1f}"),
        ),
    ),
    "secure_aggregation_images": Table(
        Pick(attack="token_matching"),
        "clients in the sum, one image each",
        tuple(Line(str(clients), Pick(run=f"secure_aggregation_images_{clients}")) for clients in (1, 2, 4)),
        (
            Line("PSNR of `token_matching`, dB", cell="{psnr.mean:.1f}"),
            Line("own mean color (control), dB", cell="{own_mean.psnr.mean:.1f}"),
        ),
    ),
    "quantized_updates": Table(
        Pick(run="quantized_updates"),
        "format of the update",
        _clients("float32", "fp16", "bf16", "int8"),
        (
            Line("PSNR, dB, mean of 16 images", cell="{psnr.mean:.1f}"),
            Line("SSIM", cell="{ssim.mean:.2f}"),
            Line("own mean color (control), dB", cell="{own_mean.psnr.mean:.1f}"),
            Line(
                "PSNR on a model without a class token, dB",
                Pick(run="quantized_updates_no_class_token"),
                "{psnr.mean:.1f}",
            ),
        ),
    ),
    "update_defenses": Table(
        Pick(run="update_defenses", attack="patch_embedding"),
        "defense",
        (
            Line("PSNR of `patch_embedding`, dB, mean of 4 images", cell="{psnr.mean:.1f}"),
            Line("best", cell="{psnr.most:.1f}"),
            Line("own mean color (control)", cell="{own_mean.psnr.mean:.1f}"),
            Line("verdict", cell="{verdict[images]}"),
            Line("labels: recall of `label_count`", Pick(attack="label_count"), "{label_recall.mean:.2f}"),
        ),
        (
            Line("none", Pick(clients=(0,))),
            Line("`clipping`, adaptive", Pick(clients=(1,))),
            Line("`pruning`, 90% kept", Pick(clients=(2,))),
            Line("`pruning`, 10% kept", Pick(clients=(3,))),
            Line("`random_sparsification`, 90% kept", Pick(clients=(4,))),
            Line("`random_sparsification`, 10% kept", Pick(clients=(5,))),
            Line(
                "`quantization` to int4",
                Pick(clients=(6,)),
                ("refused", "", "", "{verdict[images]}", "{label_recall.mean:.2f}"),
            ),
            Line("`qsgd`, four bits", Pick(clients=(7,))),
            Line("`sign`", Pick(clients=(8,))),
            Line("`soteria`, 40% pruned", Pick(clients=(9,))),
            Line("`layer_noise`, 5 of 10 slices", Pick(clients=(10,))),
            Line("`layer_noise`, `probe: signs`", Pick(clients=(11,))),
        ),
    ),
    "flower_privacy": Table(
        Pick(run="flower_privacy", attack="patch_embedding"),
        "clients",
        (
            Line("PSNR of `patch_embedding`, dB, mean of 4 images each", cell="{psnr.mean:.1f}"),
            Line("own mean color (control)", cell="{own_mean.psnr.mean:.1f}"),
            Line("verdict", cell="{verdict[images]}"),
            Line("labels: recall of `label_recovery`", Pick(attack="label_recovery"), "{label_recall.mean:.2f}"),
            Line("verdict", Pick(attack="label_recovery"), "{verdict[labels]}"),
        ),
        (
            Line("0 to 3, no noise anywhere (`FedAvg`)", Pick(run="flower_privacy_plain", clients=(0, 1, 2, 3))),
            Line("0 to 3, noise on the server, epsilon of the global models 4.4", Pick(clients=(0, 1, 2, 3))),
            Line("4, `LocalDpMod`, epsilon 3.5", Pick(clients=(4,))),
            Line("5, `LocalDpMod` with a smaller `sensitivity`, epsilon 1.4e6", Pick(clients=(5,))),
        ),
    ),
    "half_protected": Table(
        Pick(attack="patch_embedding"),
        # The epsilon is of the accountant alone (fedsim_defenses.dp_noise), whatever the images.
        "clients with `dp_noise`, epsilon 7.5",
        (
            Line("none", Pick(run="half_protected_none")),
            Line("4 to 7", Pick(run="half_protected")),
            Line("all", Pick(run="half_protected_all")),
        ),
        (
            Line("accuracy of the common model (a guess: 0.25)", cell="{accuracy[40]:.2f}"),
            Line("clients 0 to 3: PSNR of `patch_embedding`, dB", Pick(clients=(0, 1, 2, 3)), "{psnr.mean:.1f}"),
            Line("clients 0 to 3: verdict on images", Pick(clients=(0, 1, 2, 3)), "{verdict[images]}"),
            Line("clients 4 to 7: PSNR, dB", Pick(clients=(4, 5, 6, 7)), "{psnr.mean:.1f}"),
            Line("clients 4 to 7: verdict on images", Pick(clients=(4, 5, 6, 7)), "{verdict[images]}"),
            Line("own mean color (control), dB", cell="{own_mean.psnr.mean:.1f}"),
        ),
    ),
    "robust_and_private": Table(
        Pick(run="robust_and_private", attack="patch_embedding"),
        "clients",
        (
            Line("images: `patch_embedding`", cell="{psnr.interval:.1f} dB"),
            Line("own mean color", cell="{own_mean.psnr.mean:.1f} dB"),
            Line("verdict", cell="{verdict[images]}"),
            Line("labels: `label_recovery`", Pick(attack="label_recovery"), "recall {label_recall.mean:.2f}"),
        ),
        (
            Line("0, 1: none", Pick(clients=(0, 1))),
            Line("2, 3: `mjp`", Pick(clients=(2, 3))),
            Line("4, 5: `dp_noise`", Pick(clients=(4, 5))),
            Line("6, 7: `adversarial_training`", Pick(clients=(6, 7))),
        ),
    ),
    "robust_and_private_model": Table(
        ANY,
        "the common model",
        (
            Line("no defense", Pick(run="robust_and_private_none")),
            Line("a defense on each group", Pick(run="robust_and_private")),
        ),
        (
            Line("accuracy (a guess: 0.25)", cell=_evaluated("accuracy")),
            Line("PGD at 4/255", cell=_evaluated("accuracy at epsilon 4/255")),
            Line("PGD at 8/255", cell=_evaluated("accuracy at epsilon 8/255")),
            Line("PGD at 64/255", cell=_evaluated("accuracy at epsilon 64/255")),
            Line("consistency, 90% of the patches shuffled", cell=_evaluated("consistency at 0.9")),
        ),
    ),
    "ard_prm": Table(
        ANY,
        "accuracy after the last round",
        (
            Line("plain training", Pick(run="ard_prm_none")),
            Line("`adversarial_training`", Pick(run="ard_prm_plain")),
            Line("`ard` with `prm`", Pick(run="ard_prm")),
        ),
        (
            Line("images as they are", cell=_evaluated("accuracy")),
            Line("PGD at 4/255", cell=_evaluated("accuracy at epsilon 4/255")),
            Line("PGD at 8/255", cell=_evaluated("accuracy at epsilon 8/255")),
            Line("PGD at 16/255", cell=_evaluated("accuracy at epsilon 16/255")),
            Line("PGD at 64/255", cell=_evaluated("accuracy at epsilon 64/255")),
        ),
    ),
    "precode": Table(
        Pick(run="precode"),
        "one image a gradient, mean of 4",
        (
            Line("without", Pick(run="precode_plain")),
            Line("with the bottleneck"),
        ),
        (
            Line("`patch_embedding`: PSNR, dB", Pick(attack="patch_embedding"), "{psnr.mean:.1f}"),
            Line(
                "`gradient_matching`, 150 steps: PSNR, dB",
                Pick(attack="gradient_matching"),
                "{psnr.mean:.1f}",
            ),
            Line("own mean color (control), dB", Pick(attack="patch_embedding"), "{own_mean.psnr.mean:.1f}"),
            Line("`label_recovery`: recall", Pick(attack="label_recovery"), "{label_recall.mean:.2f}"),
        ),
    ),
    "head_only": _fewer_tensors("head_only"),
    "lora": _fewer_tensors("lora"),
    "soft_labels": Table(
        Pick(run="soft_labels", attack="soft_labels"),
        "clients",
        (
            Line("soft label: largest error of 12", cell="{soft_label_error.most:.0e}"),
            Line("uniform guess (control)", cell="{uniform.soft_label_error.mean:.2f}"),
            Line("head input: largest error of 12", cell="{feature_error.most:.0e}"),
            Line("data set's mean (control)", cell="{dataset_mean.feature_error.mean:.2f}"),
        ),
        (
            Line("0 to 3, nothing hidden", Pick(clients=(0, 1, 2, 3))),
            Line("4 to 7, `head.bias` hidden", Pick(clients=(4, 5, 6, 7))),
        ),
    ),
    "pictures_from_batches": Table(
        Pick(run="pictures_from_batches"),
        "PSNR, dB, mean of four images (SSIM)",
        _clients("client 0", "client 1"),
        (
            Line("`token_matching`", Pick(attack="token_matching"), _PSNR_AND_SSIM),
            Line("`gradvit`, 2,000 steps", Pick(attack="gradvit"), _PSNR_AND_SSIM),
            Line("`inverting_gradients`, 2,400 steps", Pick(attack="inverting_gradients"), _PSNR_AND_SSIM),
            _control("token_matching", "{own_mean.psnr.mean:.1f} ({own_mean.ssim.mean:.2f})"),
            Line(
                "`token_matching` on the other client's gradient (control)",
                Pick(attack="token_matching"),
                "{wrong_update.psnr.mean:.1f}",
            ),
        ),
    ),
    "resnet18_untrained": Table(
        Pick(run="resnet18_untrained", attack="inverting_gradients"),
        "PSNR, dB",
        _clients("client 0", "client 1"),
        (
            Line("`inverting_gradients`, 2,400 steps", cell="{psnr.mean:.1f}"),
            Line("data set's mean (control)", cell="{dataset_mean.psnr.mean:.1f}"),
            Line("flat grey (control)", cell="{grey.psnr.mean:.1f}"),
            Line("the other client's gradient (control)", cell="{wrong_update.psnr.mean:.1f}"),
            Line("own mean color, known from the truth (floor)", cell="{own_mean.psnr.mean:.1f}"),
            Line("`label_recovery`: recall", Pick(attack="label_recovery"), "{label_recall.mean:.2f}"),
        ),
    ),
    "pictures_from_batches_224": Table(
        Pick(run="pictures_from_batches_224"),
        "",
        (Line("PSNR, dB", cell="{psnr.over_images:.1f}"), SSIM),
        (_attack("token_matching"), _attack("gradvit"), _control("token_matching")),
    ),
    "gradvit_ablation": Table(
        Pick(run="gradvit_ablation"),
        "",
        (INTERVAL, SSIM),
        (
            _attack("matching", "gradient matching"),
            _attack("+ patch prior", "+ patch prior"),
            _attack("+ total variation and norm", "+ total variation and norm"),
            _attack("+ statistics from the first step", "+ BatchNorm statistics from the first step"),
            _attack("+ scheduler: all of GradViT", "+ scheduler: all of GradViT"),
            _attack("matching and positions", "gradient matching and position gradients"),
            _attack("all of GradViT and positions", "all of GradViT and position gradients"),
            _control("matching"),
            Line("flat grey (control)", Pick(attack="matching"), ("{grey.psnr.mean:.1f}", "{grey.ssim.mean:.2f}")),
        ),
    ),
    "defense_aware": Table(
        Pick(run="defense_aware"),
        "PSNR of `token_matching`, dB",
        (
            Line("aware", Pick(attack="token_matching"), "{psnr.mean:.1f}"),
            Line("plain", Pick(attack="token_matching (plain)"), "{psnr.mean:.1f}"),
            Line("own mean color (control)", Pick(attack="token_matching"), "{own_mean.psnr.mean:.1f}"),
        ),
        _with_blank(
            ("{psnr.mean:.1f}", "", "{own_mean.psnr.mean:.1f}"),
            "no defense",
            "`dp_noise`: clipping to 2.0, no noise",
            "`dp_noise`, multiplier 1e-5",
            "`dp_noise`, multiplier 1e-4",
            "`mjp`, gamma 0.1",
            "`quantization` to int8",
        ),
    ),
    "local_steps": Table(
        Pick(run="local_steps"),
        "",
        (INTERVAL, SSIM),
        (
            _attack("as one gradient", "as one gradient"),
            _attack("surrogate (SME)", "as the gradient at a learned point on the way (SME)"),
            _attack("unrolled steps", "as five simulated steps"),
            _control("as one gradient"),
        ),
    ),
    "label_rules": Table(
        Pick(run="label_rules"),
        "mean recall of 6 clients, 32 images each",
        (
            Line("round 1, untrained", Pick(round=1), "{label_recall.mean:.2f}"),
            Line("round 60, accuracy {accuracy[60]:.2f}", Pick(round=60), "{label_recall.mean:.2f}"),
        ),
        (
            _attack("label_recovery", "`auto`"),
            _rule("bias_count"),
            _rule("bias_count_uniform"),
            _rule("ilrg"),
            _rule("llg"),
            _rule("idlg_bias", "`idlg_bias`, no repeats"),
            _rule("grad_inversion", "`grad_inversion`, no repeats"),
            _rule("rlg", "`rlg`, no repeats"),
            _attack("blind_guess", "every class equally often (control)"),
        ),
    ),
    "vit_base_224": Table(
        Pick(run="vit_base_224"),
        "four images",
        (
            Line("PSNR, dB", cell="{psnr.least:.0f} to {psnr.most:.0f}"),
            Line("own mean color (control)", cell="{own_mean.psnr.mean:.1f}"),
        ),
        (
            Line("`photos`"),
            Line(
                "ImageNet: `--set data.name=folder --set data.path=FOLDER`",
                Pick(run="vit_base_224_imagenet"),
            ),
        ),
    ),
    "april": Table(
        Pick(run="april"),
        "PSNR, dB",
        tuple(
            Line(column.heading, column.pick, "{psnr.mean:.1f}")
            for column in _clients("client 0", "client 1", "client 2", "client 3")
        ),
        (
            _attack("april"),
            _attack("patch_embedding"),
            _attack("april_optimization", "`april_optimization`, 150 steps"),
            _control("april", "{own_mean.psnr.mean:.1f}"),
        ),
    ),
    "cifar10_accuracy": Table(
        Pick(run="cifar10_fedavg"),
        "round",
        tuple(Line(str(number), cell=f"{{accuracy[{number}]:.3f}}") for number in (0, 1, 2, 5, 10, 15, 20, 25, 30)),
        (Line("accuracy, 10,000 images of CIFAR-10"),),
    ),
    "cifar10_fedavg": Table(
        Pick(run="cifar10_fedavg"),
        "mean over 10 clients",
        (Line("round 1", Pick(round=1)), Line("round 30", Pick(round=30)), Line("blind guess")),
        (
            Line(
                "`label_count`, recall",
                Pick(attack="label_count"),
                ("{label_recall.mean:.2f}", "{label_recall.mean:.2f}", "{chance.label_recall.mean:.2f}"),
            ),
            Line(
                "`patch_embedding`, dB",
                Pick(attack="patch_embedding"),
                ("{psnr.mean:.1f}", "{psnr.mean:.1f}", "{own_mean.psnr.mean:.1f} (own mean color)"),
            ),
        ),
    ),
}

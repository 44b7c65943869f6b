"""`simkit selftest`: oracles for this install, or the rules that a discipline of one's own must keep."""

from typing import TYPE_CHECKING, Annotated

import typer

from simkit.cli import options
from simkit.cli.console import emit_json, people, progress
from simkit.errors import InputError

if TYPE_CHECKING:
    from simkit.engine.selftest import Finding

FAILED = 1


def selftest(
    policy: Annotated[
        str | None, typer.Option(help="A discipline of your own: FILE.py, FILE.py:FUNCTION or an entry point's name.")
    ] = None,
    histories: Annotated[int, typer.Option(min=1, max=1_000_000, help="Random workloads under the checker.")] = 100,
    json: options.Json = False,
) -> None:
    """Check this install against theory, or a discipline against the rules; exit code 1 if one does not hold."""
    from dataclasses import asdict

    findings = _of_policy(policy, histories) if policy is not None else _of_install(histories)
    passed = all(finding.held for finding in findings)
    if json:
        emit_json({"passed": passed, "policy": policy, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            typer.echo(_line(finding))
        broken = sum(not finding.held for finding in findings)
        typer.echo(f"{len(findings) - broken} held, {broken} broke")
    if not passed:
        raise typer.Exit(FAILED)


def _of_policy(name: str, histories: int) -> "list[Finding]":
    from simkit.engine.policy_file import entry_point_names, find_policy
    from simkit.engine.selftest import check_policy
    from simkit.errors import suggestion

    found = find_policy(name)
    if found is None:
        known = entry_point_names()
        hint = f" ({suggestion(name, known)})" if known else ""
        raise InputError(f"--policy {name}: no path of a .py file and no entry point{hint}; give FILE.py")
    with progress("histories", histories) as on_progress:
        return check_policy(found, histories, on_progress)


def _of_install(histories: int) -> "list[Finding]":
    from simkit.engine.oracles import check_oracles
    from simkit.engine.selftest import check_bundled

    people.print("queueing theory ..")
    findings = check_oracles()
    with progress("histories", histories) as on_progress:
        return [*findings, *check_bundled("vllm-v1", histories, on_progress)]


def _line(finding: "Finding") -> str:
    if finding.held:
        return f"held   {finding.rule}: {finding.statement} [{finding.detail}]"
    place = {"history": finding.history, "step": finding.step, "request": finding.request}
    where = ", ".join(f"{name} {value}" for name, value in place.items() if value is not None)
    return f"BROKE  {finding.rule}: {finding.statement} [{f'{where}: ' if where else ''}{finding.detail}]"

"""A script without asyncio: `with Session(...) as session` and `session.run(tasks)`.

The same works in a notebook. `run` does not raise failures: a failed task holds its exception, as
the last task shows. Needs only Rhapsody: the model is the embedded one, which is not a real model.
Takes a second.

    python examples/06_blocking_script.py
"""

import math

from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend


def main() -> None:
    compute = ConcurrentExecutionBackend()
    model = DragonVllmInferenceBackend(
        config_file=None,
        model_name="embedded",
        engine="embedded",
        launcher="local",
        use_service=False,
    )
    with Session([compute, model]) as session:
        roots = session.run([ComputeTask(function=math.sqrt, args=[n]) for n in range(5)])
        print("Roots:", [round(task.return_value, 3) for task in roots])

        # The prompt uses the results of the first tasks: this is plain Python.
        [answer] = session.run(
            [AITask(f"The sum is {sum(task.return_value for task in roots):.3f}.", max_tokens=16)]
        )
        print("Answer:", answer.response)

        # Without `return_exceptions` the failure would be raised here.
        wrong = ComputeTask(executable="ls", arguments=["/no/such/folder"])
        session.run([wrong], return_exceptions=True)
        print("State:", wrong.state)
        print("Reason:", wrong.exception)


if __name__ == "__main__":
    main()

"""A small task list that is kept in a JSON file."""

import argparse
import json
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path


@dataclass
class Task:
    title: str
    done: bool = False
    due: str | None = None
    tags: list[str] = field(default_factory=list)

    def is_overdue(self, today: date) -> bool:
        if self.done or self.due is None:
            return False
        return date.fromisoformat(self.due) < today


class TaskList:
    def __init__(self, path: Path):
        self.path = path
        self.tasks: list[Task] = []

    def load(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as file:
            self.tasks = [Task(**item) for item in json.load(file)]

    def save(self) -> None:
        data = [asdict(task) for task in self.tasks]
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=2)

    def add(self, title: str, due: str | None = None, tags: list[str] | None = None) -> Task:
        task = Task(title=title, due=due, tags=tags or [])
        self.tasks.append(task)
        return task

    def complete(self, index: int) -> Task:
        if not 0 <= index < len(self.tasks):
            raise IndexError(f"there is no task {index}")
        task = self.tasks[index]
        task.done = True
        return task

    def with_tag(self, tag: str) -> list[Task]:
        return [task for task in self.tasks if tag in task.tags]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=Path("tasks.json"))
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add")
    add.add_argument("title")
    add.add_argument("--due")
    add.add_argument("--tag", action="append", dest="tags")
    done = commands.add_parser("done")
    done.add_argument("index", type=int)
    commands.add_parser("list")
    args = parser.parse_args()

    tasks = TaskList(args.file)
    tasks.load()
    if args.command == "add":
        tasks.add(args.title, args.due, args.tags)
    elif args.command == "done":
        tasks.complete(args.index)
    else:
        for index, task in enumerate(tasks.tasks):
            mark = "x" if task.done else " "
            print(f"{index:3} [{mark}] {task.title}")
    tasks.save()


if __name__ == "__main__":
    main()

"""What happens with each line of a chat: a command, or a message that is answered."""

import gptkit
from gptkit_chat.session import Session
from gptkit_chat.terminal import Terminal

HELP = """\
/reset        forget what was said
/system TEXT  tell the model something before the chat; without TEXT: nothing. The chat begins anew
/seed N       the seed of the next answer
/help         this list
/quit         end the chat, as Ctrl-D does
A message that begins with / is sent after a space."""


class Dialogue:
    """A chat between somebody at a terminal, or behind a pipe, and a model.

    Args:
        session: with the model.
        terminal: where messages come from.
    """

    def __init__(self, session: Session, terminal: Terminal) -> None:
        self.session, self.terminal = session, terminal

    def run(self) -> None:
        """Answer each message until the end of the input, or /quit.

        Raises:
            UsageError: the input is not UTF-8; or, in a pipe, a message cannot be answered.
        """
        with self.terminal.interruptible():
            for line in self.terminal.messages():
                if line.strip() == "/quit":
                    return
                try:
                    self._take(line)
                except gptkit.UsageError as error:
                    if not self.terminal.typed:
                        raise
                    self.terminal.say(f"error: {error}")
                    if error.hint:
                        self.terminal.say(f"hint:  {error.hint}")

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            self._obey(*line[1:].partition(" ")[::2])
        elif line.strip():
            self._answer(line.strip())

    def _answer(self, message: str) -> None:
        session, before = self.session, len(self.session.messages)
        pieces = session.answer(message)
        if session.dropped and before:
            self.terminal.say(f"(the context is full: {_exchanges(session.dropped)} forgotten)")
        self.terminal.show(pieces)
        if self.terminal.stopped:
            return
        if session.full:
            self.terminal.say("(the answer ends here: the context is full; /reset empties it)")
        elif session.cut:
            self.terminal.say(
                f"(the answer ends here: {session.settings.tokens:,} tokens; --tokens N)"
            )

    def _obey(self, name: str, value: str) -> None:
        say, value = self.terminal.say, value.strip()
        match name.strip():
            case "help":
                say(HELP)
            case "reset":
                self.session.reset()
                say("(forgotten)")
            case "system":
                self.session.system = value
                self.session.reset()
                say("(the chat begins anew)")
            case "seed":
                try:
                    self.session.seed = self.session.settings.seed = int(value)
                except ValueError:
                    raise gptkit.UsageError(
                        f"/seed should have a whole number, got {value!r}"
                    ) from None
            case _:
                hint = "/help lists them; a message that begins with / is sent after a space"
                raise gptkit.UsageError(f"no command /{name}", hint=hint)


def _exchanges(count: int) -> str:
    return "the oldest exchange is" if count == 1 else f"the {count:,} oldest exchanges are"

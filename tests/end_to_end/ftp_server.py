"""As much of an FTP server (RFC 959) as a client in active mode needs: `ftp_server.py PORT FILE`.

The data connection is made to where the client says, and nowhere else; the file goes over it in steps.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

STEP, PAUSE_S = 100_000, 0.02


class Session:
    """One client."""

    def __init__(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        self.writer = writer
        self.content = content
        self.data = ("", 0)

    def say(self, line: str) -> None:
        self.writer.write(f"{line}\r\n".encode())

    async def obey(self, command: str, argument: str) -> bool:
        """Returns whether the client stays."""
        match command:
            case "USER" | "PASS":
                self.say("230 come in")
            case "SYST":
                self.say("215 UNIX Type: L8")
            case "TYPE":
                self.say("200 good")
            case "SIZE":
                self.say(f"213 {len(self.content)}")
            case "PORT":
                *numbers, high, low = argument.split(",")
                self.data = ".".join(numbers), int(high) * 256 + int(low)
                self.say("200 good")
            case "RETR":
                await self.send()
            case "QUIT":
                self.say("221 bye")
                return False
            case _:
                self.say("502 not here")
        return True

    async def send(self) -> None:
        _, data = await asyncio.open_connection(*self.data)
        self.say("150 here it comes")
        for begin in range(0, len(self.content), STEP):
            data.write(self.content[begin : begin + STEP])
            await data.drain()
            await asyncio.sleep(PAUSE_S)
        data.close()
        await data.wait_closed()
        self.say("226 done")


async def main(port: int, content: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(writer, content)
        session.say("220 ready")
        while line := (await reader.readline()).decode().strip():
            command, _, argument = line.partition(" ")
            if not await session.obey(command.upper(), argument):
                break
        writer.close()

    server = await asyncio.start_server(serve, "0.0.0.0", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]).read_bytes()))

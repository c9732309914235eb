#!/usr/bin/env python3
"""A stub of an ssh server that asks two questions in one round, which sshd with PAM never does.

    prompts_stub.py HOST-KEY   prints its port on 127.0.0.1, then a line for what it gets, until its input ends

It asks "One-time code: " and "PIN: " at once, with a title and an instruction; who answers both rightly is told something in a round
without a question. It runs commands by `sh -c`, and has nothing else of a server.
"""
import json, os, socket, subprocess, sys, threading
import paramiko

RIGHT = ["123456", "2580"]
QUESTIONS = paramiko.InteractiveQuery("2FA title", "Please answer two questions", ("One-time code: ", True), ("PIN: ", False))
SAID = paramiko.InteractiveQuery("", "Your badge ends soon")

def tell(what):
    print(json.dumps(what), flush=True)

class Session(paramiko.ServerInterface):
    def __init__(self):
        self.answered = False

    def get_allowed_auths(self, username):
        return "keyboard-interactive"

    def check_auth_interactive(self, username, submethods):
        self.answered = False
        return QUESTIONS

    def check_auth_interactive_response(self, responses):
        tell(responses)
        if self.answered and not responses:
            return paramiko.AUTH_SUCCESSFUL
        self.answered = not self.answered and responses == RIGHT
        return SAID if self.answered else paramiko.AUTH_FAILED

    def check_channel_request(self, kind, number):
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_exec_request(self, channel, command):
        threading.Thread(target=run, args=(channel, command), daemon=True).start()
        return True

def run(channel, command):
    connection = channel.get_transport().sock
    ends = (*connection.getpeername(), *connection.getsockname())
    # In a session of its own, as sshd has it: a server that nobody keeps is ended with all of its group.
    process = subprocess.Popen(
        [b"sh", b"-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"SSH_CONNECTION": " ".join(map(str, ends))},
    )
    def feed():
        with process.stdin:
            while data := channel.recv(65536):
                try:
                    os.write(process.stdin.fileno(), data)
                except BrokenPipeError:
                    return
    def copy(source, send):
        while data := os.read(source.fileno(), 65536):
            send(data)
    threading.Thread(target=feed, daemon=True).start()
    errors = threading.Thread(target=copy, args=(process.stderr, channel.sendall_stderr), daemon=True)
    errors.start()
    copy(process.stdout, channel.sendall)
    errors.join()
    channel.send_exit_status(process.wait())
    channel.close()

def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    key = paramiko.Ed25519Key.from_private_key_file(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0))
    def accept():
        while True:
            transport = paramiko.Transport(listener.accept()[0])
            transport.add_server_key(key)
            transport.start_server(event=threading.Event(), server=Session())
    threading.Thread(target=accept, daemon=True).start()
    tell(listener.getsockname()[1])
    sys.stdin.read()

main()

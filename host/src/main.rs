//! The `distant` program: parse, run, exit code.

fn main() -> std::process::ExitCode {
    distant::cli::main()
}

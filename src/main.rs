fn main() -> std::process::ExitCode {
    pishrink::cli::run()
}

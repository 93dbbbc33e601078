//! Temporary.
fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).without_time().init();
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        match args[1].as_str() {
            "join" => {
                let name = phalanx_agent::join(&phalanx_agent::JoinOptions {
                    upstream: args[2].clone(),
                    token: args[3].clone(),
                    root: phalanx_agent::ROOT.into(),
                })
                .await?;
                println!("joined as {name}");
                Ok(())
            }
            "guard" if args.len() > 2 => {
                let probe = phalanx_agent::guard::Probe {
                    mount_point: args[3].clone().into(),
                    marker: args[5].parse()?,
                    number: args[7].parse()?,
                };
                std::process::exit(i32::from(phalanx_agent::guard::probe(&probe)));
            }
            "guard" => phalanx_agent::guard::run(std::path::Path::new("/var/lib/phalanx/live/guard.json")).await,
            "guard-probe" => Ok(()),
            "launcher" => {
                phalanx_agent::launcher::run(std::path::Path::new("/var/lib/phalanx/live/launcher.json")).await
            }
            _ => {
                phalanx_agent::run(phalanx_agent::RunOptions {
                    stop_before: args.get(2).map(|n| n.parse()).transpose()?,
                    ..Default::default()
                })
                .await
            }
        }
    })
}

//! Images from a server that redirects, breaks off, knows parts or does not.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::tools::*;

/// What a server does, besides serving `/image`.
#[derive(Clone, Copy, Default)]
struct Manners {
    /// Hangs up after so many bytes of an answer.
    breaks_after: Option<usize>,
    /// Breaks only so often.
    breaks: u32,
    ignores_ranges: bool,
    /// The file is another one from the second request on.
    changes: bool,
}

struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(image: Vec<u8>, sidecar: Option<String>, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, image) = (requests.clone(), Arc::new(image));
        let broken = Arc::new(AtomicU32::new(0));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (image, log, broken) = (image.clone(), log.clone(), broken.clone());
                let sidecar = sidecar.clone();
                std::thread::spawn(move || {
                    let _ = answer(stream, &image, sidecar.as_deref(), manners, &log, &broken);
                });
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    image: &[u8],
    sidecar: Option<&str>,
    manners: Manners,
    log: &Mutex<Vec<String>>,
    broken: &AtomicU32,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut range, mut if_range) = (None, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_owned();
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("range: bytes=") {
            range = value.trim_end_matches('-').parse::<usize>().ok();
        }
        if lower.starts_with("if-range:") {
            if_range = line.split_once(' ').map(|(_, value)| value.to_owned());
        }
        if line.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(match range {
        Some(start) => format!("{path} from {start}"),
        None => path.clone(),
    });
    let tag = match manners.changes && range.is_some() {
        true => "\"two\"",
        false => "\"one\"",
    };
    let close = "Connection: close\r\n\r\n";
    match (path.as_str(), sidecar) {
        ("/moved", _) => {
            let head = "HTTP/1.1 302 Found\r\nLocation: /image\r\nContent-Length: 0\r\n";
            return stream.write_all(format!("{head}{close}").as_bytes());
        }
        ("/image", _) => {}
        ("/image.sha256" | "/moved.sha256", Some(text)) => {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{close}",
                text.len()
            );
            return stream.write_all(format!("{head}{text}").as_bytes());
        }
        _ => {
            let head = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n";
            return stream.write_all(format!("{head}{close}").as_bytes());
        }
    }
    let partial = !manners.ignores_ranges && if_range.as_deref().is_none_or(|name| name == tag);
    let start = range.filter(|_| partial).unwrap_or(0);
    let body = &image[start..];
    let status = match range.filter(|_| partial) {
        Some(start) => format!(
            "206 Partial Content\r\nContent-Range: bytes {start}-{}/{}",
            image.len() - 1,
            image.len()
        ),
        None => "200 OK".into(),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nETag: {tag}\r\nContent-Length: {}\r\n{close}",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    let enough = match manners.breaks_after {
        Some(limit) if broken.fetch_add(1, Ordering::SeqCst) < manners.breaks => limit,
        _ => body.len(),
    };
    stream.write_all(&body[..enough.min(body.len())])
}

#[test]
fn an_image_from_the_web_survives_redirects_and_broken_connections() {
    let scratch = Scratch::new();
    let image = pi_image(&scratch, "x.img");
    tool("xz", &["-0", "-k", text(&image)]);
    let packed = fs::read(scratch.path("x.img.xz")).unwrap();
    let raw = fs::read(&image).unwrap();
    let card = scratch.card("card", 80 * MIB);
    let breaking = Manners {
        breaks_after: Some(400_000),
        breaks: 4,
        ..Manners::default()
    };
    for (bytes, manners, path) in [
        (&raw, Manners::default(), "/image"),
        (&packed, breaking, "/image"),
        (&raw, breaking, "/moved"),
        (
            &packed,
            Manners {
                ignores_ranges: true,
                ..breaking
            },
            "/moved",
        ),
    ] {
        let server = Server::start(bytes.clone(), None, manners);
        let url = format!("{}{path}", server.address);
        fs::write(&card, vec![0xa5; 80 * MIB as usize]).unwrap();
        flash(&url, &card, &["--expand", "none"]);
        assert!(read(&card, 0, 64 * MIB) == raw);
        let requests = server.requests();
        if manners.breaks > 0 && !manners.ignores_ranges {
            let resumed: Vec<_> = requests.iter().filter(|r| r.contains("from")).collect();
            assert!(resumed.len() >= 4, "{requests:?}");
            assert!(resumed[0].ends_with("from 400000"), "{requests:?}");
        }
    }
}

#[test]
fn a_file_that_changes_meanwhile_or_is_not_there_is_an_error() {
    let scratch = Scratch::new();
    let raw = fs::read(pi_image(&scratch, "x.img")).unwrap();
    let card = scratch.card("card", 80 * MIB);
    let manners = Manners {
        breaks_after: Some(9_000_000),
        breaks: 1,
        changes: true,
        ..Manners::default()
    };
    let server = Server::start(raw, None, manners);
    let url = format!("{}/image", server.address);
    let (code, errors) = refusal(&["flash", &url, text(&card), "--yes"]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("changed on the server"), "{errors}");
    assert!(read(&card, 0, MIB).iter().all(|&byte| byte == 0));
    let before = fs::read(&card).unwrap();
    let url = format!("{}/nothing", server.address);
    let (code, errors) = refusal(&["flash", &url, text(&card), "--yes"]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("404"), "{errors}");
    assert!(fs::read(&card).unwrap() == before);
}

#[test]
fn the_checksum_beside_it_counts() {
    let scratch = Scratch::new();
    let image = pi_image(&scratch, "x.img");
    let raw = fs::read(&image).unwrap();
    let card = scratch.card("card", 80 * MIB);
    let sum = tool("sha256sum", &[text(&image)]);
    let server = Server::start(raw.clone(), Some(sum.clone()), Manners::default());
    flash(&format!("{}/moved", server.address), &card, &[]);
    let wrong = sum.replace(['0', '5'], "7");
    let server = Server::start(raw, Some(wrong), Manners::default());
    let url = format!("{}/image", server.address);
    let (code, errors) = refusal(&["flash", &url, text(&card), "--yes"]);
    assert_eq!(code, 4, "{errors}");
    assert!(read(&card, 0, MIB).iter().all(|&byte| byte == 0));
}

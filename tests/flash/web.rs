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
    /// Has a page for people for whatever it does not have.
    has_pages: bool,
}

/// What lies beside the image: the end of its address, and its contents.
type Beside = Vec<(&'static str, String)>;

struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(image: Vec<u8>, beside: Beside, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, image, beside) = (requests.clone(), Arc::new(image), Arc::new(beside));
        let broken = Arc::new(AtomicU32::new(0));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (image, log, broken) = (image.clone(), log.clone(), broken.clone());
                let beside = beside.clone();
                std::thread::spawn(move || {
                    let _ = answer(stream, &image, &beside, manners, &log, &broken);
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
    beside: &Beside,
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
    let head = |status: &str, kind: &str, len: usize| {
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n{close}")
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let name = name.split('?').next().unwrap_or_default();
    if let Some((_, text)) = beside.iter().find(|(own, _)| *own == name) {
        let head = head("200 OK", "text/plain", text.len());
        return stream.write_all(format!("{head}{text}").as_bytes());
    }
    match name {
        "moved" => {
            let head = "HTTP/1.1 302 Found\r\nLocation: /image\r\nContent-Length: 0\r\n";
            return stream.write_all(format!("{head}{close}").as_bytes());
        }
        "image" | "image.img.xz" => {}
        _ if manners.has_pages => {
            let page = "<html>Nothing here, but have you seen our products?</html>";
            let head = head("200 OK", "text/html; charset=utf-8", page.len());
            return stream.write_all(format!("{head}{page}").as_bytes());
        }
        _ => return stream.write_all(head("404 Not Found", "text/html", 0).as_bytes()),
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
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    tool("xz", &["-0", "-k", text(&image)]);
    let packed = fs::read(scratch.path("x.img.xz")).unwrap();
    let raw = fs::read(&image).unwrap();
    let card = used_card(&scratch, "card", 80 * MIB);
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
        let server = Server::start(bytes.clone(), vec![], manners);
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
    let scratch = Scratch::new("flash");
    let raw = fs::read(pi_image(&scratch, "x.img")).unwrap();
    let card = used_card(&scratch, "card", 80 * MIB);
    let manners = Manners {
        breaks_after: Some(9_000_000),
        breaks: 1,
        changes: true,
        ..Manners::default()
    };
    let server = Server::start(raw, vec![], manners);
    let url = format!("{}/image", server.address);
    let (code, errors) = refusal(&["flash", &url, text(&card), "--yes", "--overwrite"]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("changed on the server"), "{errors}");
    assert!(read(&card, 0, MIB).iter().all(|&byte| byte == 0));
    let before = fs::read(&card).unwrap();
    let url = format!("{}/nothing", server.address);
    let (code, errors) = refusal(&["flash", &url, text(&card), "--yes", "--overwrite"]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("404"), "{errors}");
    assert!(fs::read(&card).unwrap() == before);
}

#[test]
fn the_checksum_beside_it_counts() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let raw = fs::read(&image).unwrap();
    let card = used_card(&scratch, "card", 80 * MIB);
    let sum = tool("sha256sum", &[text(&image)]);
    let beside = vec![("moved.sha256", sum.clone())];
    let server = Server::start(raw.clone(), beside, Manners::default());
    flash(&format!("{}/moved", server.address), &card, &[]);
    for (wrong, code, words) in [
        (sum.replace(['0', '5'], "7"), 4, "SHA-256"),
        ("x".repeat(100_000), 3, "image.sha256 is larger than"),
        ("none of it".to_owned(), 3, "image.sha256 has no sha256"),
    ] {
        fs::write(&card, vec![0; 80 * MIB as usize]).unwrap();
        let beside = vec![("image.sha256", wrong)];
        let server = Server::start(raw.clone(), beside, Manners::default());
        let url = format!("{}/image", server.address);
        let (exit, errors) = refusal(&["flash", &url, text(&card), "--yes", "--overwrite"]);
        assert_eq!(exit, code, "{errors}");
        assert!(errors.contains(words), "{errors}");
        assert!(read(&card, 0, MIB).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn the_block_map_beside_it_is_used() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let raw = fs::read(&image).unwrap();
    tool("xz", &["-0", "-k", text(&image)]);
    let packed = fs::read(scratch.path("x.img.xz")).unwrap();
    let map = scratch.path("map");
    tool("bmaptool", &["create", "-o", text(&map), text(&image)]);
    let map = fs::read_to_string(map).unwrap();
    let card = used_card(&scratch, "card", 80 * MIB);
    let run = |bytes: &[u8], path: &str, beside: Beside, more: &[&str], manners: Manners| {
        let server = Server::start(bytes.to_vec(), beside, manners);
        let url = format!("{}{path}", server.address);
        let more = [&["--expand", "none"], more].concat();
        let said = flash(&url, &card, &more);
        assert!(read(&card, 0, 64 * MIB) == raw, "{path} {more:?}");
        (said["written_bytes"].as_u64().unwrap(), server.requests())
    };
    let polite = Manners::default();
    // Under each of the names that it may have beside a file, in this order.
    for (asked, name) in ["image.img.xz.bmap", "image.img.bmap", "image.bmap"]
        .into_iter()
        .enumerate()
    {
        let beside = vec![(name, map.clone())];
        let (written, requests) = run(&packed, "/a/image.img.xz", beside, &[], polite);
        assert!(written < 16 * MIB, "{name}: {written}");
        assert_eq!(requests[asked], format!("/a/{name}"));
        assert!(!requests[..asked].contains(&format!("/a/{name}")));
    }
    let beside = || vec![("image.bmap", map.clone())];
    let (written, requests) = run(&raw, "/image", beside(), &["--no-bmap"], polite);
    assert_eq!(written, 64 * MIB);
    assert!(
        !requests.iter().any(|path| path.ends_with(".bmap")),
        "{requests:?}"
    );
    let pages = Manners {
        has_pages: true,
        ..polite
    };
    assert_eq!(run(&raw, "/image", vec![], &[], pages).0, 64 * MIB);
    // What follows a question mark is not a name: nothing lies beside.
    let (written, requests) = run(&raw, "/image?key=1", beside(), &[], polite);
    assert_eq!((written, requests.len()), (64 * MIB, 1));

    let mut other = raw.clone();
    other[9 * MIB as usize + 2000] ^= 1;
    for (bytes, map, code, words) in [
        (&other, map.clone(), 4, "do not have the checksum"),
        (&raw, map.replace("sha256", "sha1"), 3, "/image.bmap"),
        (&raw, "<bmap".to_owned(), 3, "/image.bmap"),
    ] {
        fs::write(&card, vec![0; 80 * MIB as usize]).unwrap();
        let server = Server::start(bytes.clone(), vec![("image.bmap", map)], polite);
        let url = format!("{}/image", server.address);
        let (exit, errors) = refusal(&["flash", &url, text(&card), "--yes", "--overwrite"]);
        assert_eq!(exit, code, "{errors}");
        assert!(errors.contains(words), "{errors}");
        assert!(read(&card, 0, MIB).iter().all(|&byte| byte == 0));
    }
}

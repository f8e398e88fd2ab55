use super::*;

fn request(kind: u8, fields: &[u8]) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend(7_u32.to_be_bytes());
    body.extend(fields);
    body
}

fn text(text: &Path) -> Vec<u8> {
    let bytes = text.as_os_str().as_bytes();
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn ask(server: &mut Server, kind: u8, fields: &[&[u8]]) -> (u8, Vec<u8>) {
    let wire = server.answer(&request(kind, &fields.concat())).finish();
    assert_eq!(u32::from_be_bytes(wire[..4].try_into().unwrap()) as usize, wire.len() - 4);
    (wire[4], wire[9..].to_vec())
}

#[test]
fn a_file_is_written_read_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let mut server = Server::default();
    let create = (FLAGS.0).to_be_bytes();
    let mode = [4_u32.to_be_bytes(), 0o640_u32.to_be_bytes()].concat();
    let (kind, handle) = ask(&mut server, packet::OPEN, &[&text(&path), &create, &mode]);
    assert_eq!(kind, packet::HANDLE);
    for (offset, data) in [(0_u64, b"hello ".as_slice()), (6, b"world")] {
        let data = [&u32::try_from(data.len()).unwrap().to_be_bytes(), data].concat();
        let (kind, body) = ask(&mut server, packet::WRITE, &[&handle, &offset.to_be_bytes(), &data]);
        assert_eq!((kind, &body[..4]), (packet::STATUS, &status::OK.to_be_bytes()[..]));
    }
    assert_eq!(ask(&mut server, packet::CLOSE, &[&handle]).0, packet::STATUS);
    assert_eq!(fs::read_to_string(&path).unwrap(), "hello world");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);

    let (_, handle) = ask(&mut server, packet::OPEN, &[&text(&path), &FLAGS.1.to_be_bytes(), &[0; 4]]);
    let (kind, body) =
        ask(&mut server, packet::READ, &[&handle, &6_u64.to_be_bytes(), &u32::MAX.to_be_bytes()]);
    assert_eq!((kind, &body[4..]), (packet::DATA, b"world".as_slice()));
    let (_, body) = ask(&mut server, packet::READ, &[&handle, &11_u64.to_be_bytes(), &9_u32.to_be_bytes()]);
    assert_eq!(body[..4], status::EOF.to_be_bytes());

    let (_, handle) = ask(&mut server, packet::OPENDIR, &[&text(folder.path())]);
    let (kind, body) = ask(&mut server, packet::READDIR, &[&handle]);
    assert_eq!((kind, &body[..4]), (packet::NAME, &3_u32.to_be_bytes()[..]));
    let (_, body) = ask(&mut server, packet::READDIR, &[&handle]);
    assert_eq!(body[..4], status::EOF.to_be_bytes());
}

/// Flags of a file to be written, and of one to be read.
const FLAGS: (u32, u32) =
    (packet::FLAG_WRITE | packet::FLAG_CREATE | packet::FLAG_TRUNCATE, packet::FLAG_READ);

#[test]
fn requests_that_make_no_sense_get_an_answer() {
    let mut server = Server::default();
    for kind in 2..=255 {
        for fields in [&[][..], &[0xff; 3], &[0xff; 64], &[0; 64]] {
            let (answer, _) = ask(&mut server, kind, &[fields]);
            assert!(answer >= packet::STATUS, "{kind}");
        }
    }
    assert_eq!(server.answer(&[]).finish()[4], packet::STATUS);
    let mut long: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1];
    assert!(serve(&mut long, io::sink()).is_err());
}

#[test]
fn handles_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::default();
    let kinds: Vec<u8> =
        (0..=MAX_HANDLES).map(|_| ask(&mut server, packet::OPENDIR, &[&text(folder.path())]).0).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == packet::HANDLE).count(), MAX_HANDLES);
}

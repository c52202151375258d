//! A small disk of its own: a file system in a file, which can be filled.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::Folder;

/// A mounted disk, unmounted when it is dropped. Mounting needs root.
pub struct Disk {
    mounted_at: PathBuf,
    _folder: Folder,
}

impl Disk {
    /// A disk of so many megabytes.
    pub fn of_megabytes(size: u32) -> Self {
        let folder = Folder::new();
        let (image, mounted_at) = (folder.path().join("image"), folder.path().join("disk"));
        std::fs::create_dir(&mounted_at).expect("a folder");
        run(Command::new("truncate").arg(format!("--size={size}M")).arg(&image));
        // Nothing kept back for root, which the server under test may be.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &mounted_at]));
        run(Command::new("chmod").arg("777").arg(&mounted_at));
        Self { mounted_at, _folder: folder }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.mounted_at
    }

    /// Fills it to the last block.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).expect("a file");
        let mut bytes: &[u8] = &[7; 1 << 20];
        while !bytes.is_empty() {
            // Smaller and smaller pieces, until not even one byte fits.
            if file.write_all(bytes).is_err() {
                bytes = &bytes[..bytes.len() / 2];
            }
        }
        let _ = file.sync_all();
    }

    /// Gives back what [`Disk::fill`] took.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("the file goes");
    }

    fn filler(&self) -> PathBuf {
        self.mounted_at.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is about to go may still have a file open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted_at).status();
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("a program that can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} (run the tests as root): {told}");
}
